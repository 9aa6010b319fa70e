"""Runs that train models, and measurements of the trained models."""
