"""Embed: patches → features."""
