"""Cluster: features → tissue types → pseudo label maps and regions."""
