"""Embed: computes the features of the patches of slides."""
