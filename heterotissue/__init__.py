"""HeteroTissue for its users: the command line, the local stack, and the Python interface."""
