"""Evaluate: compares a synthetic dataset with held-out real regions, and writes a report."""
