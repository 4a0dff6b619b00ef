"""Ingest: turns slides and annotations into tissue masks, label maps, patches and regions."""
