"""The library that every service imports; it imports no service."""
