"""Training: the trainer, its state, fitting, and what is saved of it."""
