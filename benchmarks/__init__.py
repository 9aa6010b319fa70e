"""Benchmarks: `pytest --benchmark-only` at the root; every speed is a ratio to a peer timed in the same run."""
