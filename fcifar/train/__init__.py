"""Training: what writes a run directory. ``loop.train`` is the training loop."""
