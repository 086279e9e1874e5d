"""Kernels of our own, for what the libraries' kernels do badly: small convolutions on the CPU.

The networks of the tutorials have convolutions of 3, 6, 16 and 32 channels, each followed by a 2x2
max-pool. Libraries make such kernels for wide layers, and pay for padding, for changes of layout,
and for the three of four gradients that are zero behind a max-pool. ``conv_pool.c`` is one kernel
for the pair, forward and backward; ``lowering`` finds the pair in the graph of a compiled step and
puts the kernel there. Models stay as they are written, and everything that is not compiled, or not
in float32 on an x86 processor with AVX-512, runs as PyTorch runs it.
"""

from fcifar.kernels.building import why_not
from fcifar.kernels.lowering import backend

__all__ = ["backend", "why_not"]
