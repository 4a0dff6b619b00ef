"""Run the command line: `python -m heterotissue.cli` does the same as `htd`."""

from heterotissue.cli import main

main()
