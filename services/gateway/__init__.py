"""The gateway: the only front door. Today a command line, `htd`."""
