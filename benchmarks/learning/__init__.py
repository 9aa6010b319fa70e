"""Runs that train models, and what they learned."""
