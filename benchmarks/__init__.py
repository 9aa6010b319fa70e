"""Benchmarks: run `pytest --benchmark-only` at the root. Every speed is a ratio to a peer that was timed in the same run."""
