"""GELU of bfloat16 values, ``x * cdf(x)`` with the normal distribution's ``cdf``, by polynomials.

The error function and the exponential of a library are exact to float32 and take most of the time
of a pass over the values. ``cdf(x) - 1/2`` and the derivative less 1/2 are odd functions; here each
is ``x`` times a polynomial in ``x^2``, fitted for the least maximal error on [-4, 4] (Lawson's
iteration), and constant beyond.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LIMIT = 4.0
CDF = (
    *(0.398947965, -0.0664148001, 0.00987810264, -0.00113399404, 9.89143647e-05),
    *(-6.29540054e-06, 2.7163296e-07, -7.00391419e-09, 8.06393316e-11),
)
"""Coefficients of (cdf(x) - 1/2) / x in x^2. The error of cdf is below 4e-5. At the limit it is a
little above 1, so that clamped it is exactly 0 or 1 beyond."""
DERIVATIVE = (
    *(0.797826066, -0.265671554, 0.0594156631, -0.00920869923, 0.00104358043),
    *(-8.7031495e-05, 5.18404326e-06, -2.07035156e-07, 4.92707742e-09, -5.24794361e-11),
)
"""Coefficients of (d/dx (x cdf(x)) - 1/2) / x in x^2; the error is below 5e-5 on [-4, 4], and 6e-4
beyond."""


def _half_and_odd(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    x = x.clamp(-LIMIT, LIMIT)
    square = x * x
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * square + coefficient
    return x * value + 0.5


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """The decomposition of ``aten.gelu``; NotImplemented for other dtypes and approximations."""
    if x.dtype != torch.bfloat16 or approximate != "none":
        return NotImplemented
    wide = x.float()
    # Beyond the limit the product is x or 0, as it should be.
    return (wide * _half_and_odd(wide, CDF).clamp(0, 1)).to(x.dtype)


def gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """The decomposition of ``aten.gelu_backward``; NotImplemented as ``gelu``."""
    if {x.dtype, gradient.dtype} != {torch.bfloat16} or approximate != "none":
        return NotImplemented
    slope = _half_and_odd(x.float(), DERIVATIVE)
    return (gradient.float() * slope).to(x.dtype)
