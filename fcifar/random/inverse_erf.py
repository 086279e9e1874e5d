"""The error function and its inverse as computed by XLA, for draws close to JAX's.

Also the inverse of the normal distribution function in the tails, which float32 does not resolve
because the error function is close to 1 there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Coefficients from the highest power down.
# fmt: off
_ERFINV_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)
_ERFINV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)
_ERF_NUMERATOR = (
    0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145,
    1.128379143519084,
)
_ERF_DENOMINATOR = (
    -1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667,
    0.11098505178285362, 0.49746925110067538, 1.0,
)
# fmt: on
_ERF_IS_ONE = 3.832506856900711  # erf is 1 in float32 from here on


def erf(x: float) -> float:
    """The error function in float32, with the bits of XLA on a CPU.

    A rational approximation with fused multiply-adds, within 5 units in the last place.
    """
    x = float32(min(max(x, -_ERF_IS_ONE), _ERF_IS_ONE))
    square = float32(x * x)

    def polynomial(coefficients: Sequence[float]) -> float:
        value = float32(coefficients[0])
        for c in coefficients[1:]:
            value = float32(value * square + float32(c))  # the product is exact in float64
        return value

    return float32(float32(x * polynomial(_ERF_NUMERATOR)) / polynomial(_ERF_DENOMINATOR))


def float32(x: float) -> float:
    """Round a finite number to float32, in plain arithmetic that ``torch.compile`` can trace."""
    _, exponent = math.frexp(x)
    unit = 2.0 ** max(exponent - 24, -149)  # in the last place
    return round(x / unit) * unit


def erfinv(x: Tensor) -> Tensor:
    """The inverse error function of ``x``, float32 in (-1, 1).

    Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011), single precision, as in
    XLA. ``torch.erfinv`` is more accurate and up to 90 units in the last place away.
    """
    if x.is_meta:  # without values, where Python would go through each operation
        return torch.empty_like(x)
    w = -torch.log1p(-x * x)
    centre, tail = _horner(_ERFINV_CENTRE, w - 2.5), _horner(_ERFINV_TAIL, torch.sqrt(w) - 3.0)
    return x * torch.where(w < 5.0, centre, tail)


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = (value * x).add_(c)  # in place, because memory bandwidth is the bottleneck
    return value


CENTRE = 2.0  # up to this distance from 0, float32 and the error function are accurate enough


def normal_tails(unit: Tensor, lower: float, upper: float, left: bool | Tensor) -> Tensor:
    """The inverse of the normal distribution function, on the part of (lower, upper) beyond
    ``CENTRE``.

    It uses the logarithm of Q(x), the probability above x. Q is linear in the uniform draw: ``Q(x)
    = Q(lower) * (1 - unit * (1 - Q(upper) / Q(lower)))``. The left tail is computed by symmetry.

    Args:
        unit: float32 multiples of 2**-23 in [0, 1), the share of the interval's probability below
            x.
        left: whether a draw lies in the left tail, for all draws or for each.

    Returns:
        float32; arbitrary for draws outside the tails.
    """
    unit = unit.double()

    def right() -> Tensor:
        return _log_q(unit, lower, upper)

    def mirrored() -> Tensor:
        # Replace 0 with half of the smallest draw, because the bound may be infinite.
        return _log_q(1 - unit.clamp(min=2.0**-24), -upper, -lower)

    if isinstance(left, Tensor):
        log_q, sign = torch.where(left, mirrored(), right()), torch.where(left, -1.0, 1.0)
    else:
        log_q, sign = (mirrored(), -1.0) if left else (right(), 1.0)
    return (sign * _tail(log_q.clamp(max=math.log(0.025)))).float()


def _log_q(unit: Tensor, lower: float, upper: float) -> Tensor:
    near, far = (
        torch.special.log_ndtr(torch.full((), -v, dtype=torch.float64, device=unit.device))
        for v in (lower, upper)
    )
    return near + torch.log1p(unit * torch.expm1(far - near))


def _tail(log_q: Tensor) -> Tensor:
    """Return the x that a normal draw exceeds with probability ``exp(log_q)`` <= 0.025, in float64.

    Newton's method on the logarithm, which is concave, so that it does not overshoot. Three steps
    from an asymptotic expansion converge to rounding error.
    """
    s = -2 * log_q - math.log(2 * math.pi)
    x = torch.sqrt(s - torch.log(s))
    for _ in range(3):
        # Q(x) = exp(-x**2 / 2) * scaled / 2, and d log Q / dx = -sqrt(2 / pi) / scaled.
        scaled = torch.special.erfcx(x * math.sqrt(0.5))
        log_ratio = torch.log(scaled / 2) - x * x / 2 - log_q
        x = x + log_ratio * scaled * math.sqrt(math.pi / 2)
    return x
