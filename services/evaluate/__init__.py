"""Evaluate: a synthetic dataset against held-out real regions → report."""
