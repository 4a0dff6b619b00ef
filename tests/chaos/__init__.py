"""Datasets under injected faults."""
