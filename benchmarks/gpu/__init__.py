"""Checks results and measures times on a machine with a GPU."""
