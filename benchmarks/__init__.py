"""Benchmarks: `pytest --benchmark-only benchmarks`; every speed is a ratio to a peer timed in the same run."""
