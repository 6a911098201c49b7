"""Processes are killed and stopped while they hammer one pool: what must hold all the same."""
