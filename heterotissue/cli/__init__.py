"""The command line `htd`. Each module holds the commands of one subject."""

from heterotissue.cli.app import app, main

__all__ = ["app", "main"]
