"""From operations to launches on a GPU."""
