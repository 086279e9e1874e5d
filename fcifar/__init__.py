"""fcifar: CIFAR-10 image classification as pure functions in PyTorch."""

__version__ = "0.1.0"
