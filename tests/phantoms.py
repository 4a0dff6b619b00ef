"""The seed of the tests' phantom slides."""

PHANTOM_SEED = 5
"""One for all: the textures of a seed take most of a slide's time, and are drawn once."""
