"""`python -m heterotissue.cli` is `htd`."""

from heterotissue.cli.app import main

main()
