"""``fcifar bench``: the time of a training step, beside plain PyTorch."""
