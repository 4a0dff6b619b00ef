"""Synthetic datasets: samples, exports, and the choice of label maps and crops."""
