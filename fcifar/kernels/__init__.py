"""What runs below a compiled step: CPU kernels, and CUDA graphs.

On CUDA, ``cuda_graph`` replays a whole step by one launch. The CPU kernels are for convolutions,
most of them with a 2x2 max-pool behind, where three of four gradients are zero. They need an x86
processor with AVX-512:

* ``conv_pool``: small convolutions with a pool, of 3 to 64 channels, in float32, forward and
  backward. The libraries' kernels are made for wide layers, and spend time on padding and changes
  of layout. Backward optionally with a gradient of the weights for each image, as under
  ``vmap(grad)``.
* ``winograd``: wide 3x3 convolutions, of up to 512 channels, in bfloat16, with or without a pool,
  forward and backward, with fewer products.
* ``wide_conv``: the backward pass of those with a pool on processors where that is faster, without
  the products with zeros.
* ``norm_gelu``: batch norm with GELU of images in bfloat16, forward and backward.

``pattern`` finds such convolutions in a compiled graph, ``lowering`` inserts the kernels, and
``backends`` compiles the result by inductor. ``torch.compile(module, backend="fcifar")`` uses
them in any ``nn.Module``.
"""

from fcifar.kernels.backends import backend, step_backend
from fcifar.kernels.build import why_not
from fcifar.kernels.cuda_graph import replayed

__all__ = ["backend", "replayed", "step_backend", "why_not"]
