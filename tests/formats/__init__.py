"""Conformance of what is read and written with the formats of the field."""
