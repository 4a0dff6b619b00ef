"""Cluster: finds tissue types in features, and makes label maps and regions of them."""
