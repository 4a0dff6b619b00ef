"""Reading slides, label maps and regions, and drawing sheets."""
