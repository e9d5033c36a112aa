"""This machine and its GPU."""
