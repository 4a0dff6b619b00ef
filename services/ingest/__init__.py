"""Ingest: slides and their annotations → tissue, label maps, patch index, regions."""
