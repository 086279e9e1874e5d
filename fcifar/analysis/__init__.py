"""What predictions say: pure functions of logits, labels and per-example results."""
