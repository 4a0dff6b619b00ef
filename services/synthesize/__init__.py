"""Synthesize: a dataset request → images with their label maps and provenance."""
