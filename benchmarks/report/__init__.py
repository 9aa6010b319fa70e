"""Makes the report, docs/results.md and pictures from the stored results."""
