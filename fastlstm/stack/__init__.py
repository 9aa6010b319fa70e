"""Stacked recurrent layers on kernel buffers: the recurrence, the products around it, batches of unequal lengths."""
