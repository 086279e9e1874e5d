"""Kernels of our own, for what the libraries' kernels do badly: convolutions with a 2x2 max-pool.

Behind such a pool three of four gradients are zero, and libraries multiply by them all the same.
Our kernels do not. There are two kinds, for the CPU alone:

* ``conv_pool``: small convolutions, of 3 to 64 channels, in float32, forward and backward in one.
  Libraries make theirs for wide layers, and pay for padding and for changes of layout as well.
  Backward also with a gradient of the weights for each image, as under ``vmap(grad)``.
* ``wide_conv``: wide ones, of up to 512 channels, in bfloat16, backward; forward the library does
  them well, and ``max_pool`` the pool.

``pattern`` finds such convolutions in a compiled graph, and ``lowering`` puts the kernels there.
Models stay as they are written, and everything that is not compiled, or not on an x86 processor
with AVX-512, runs as PyTorch runs it.

``torch.compile(module, backend="fcifar")`` gives the kernels to any ``nn.Module``.
"""

from fcifar.kernels.build import why_not
from fcifar.kernels.lowering import backend, step_backend

__all__ = ["backend", "step_backend", "why_not"]
