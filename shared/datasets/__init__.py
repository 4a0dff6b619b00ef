"""Synthetic datasets: their samples, exports, and the maps and crops they are made from."""
