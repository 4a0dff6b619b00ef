"""`htd`: the command line. Each module holds the commands of one subject."""

from heterotissue.cli.app import main

__all__ = ["main"]
