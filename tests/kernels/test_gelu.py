"""GELU of bfloat16 values by polynomials, against the exact function in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import random
from fcifar.kernels.gelu import CDF, DERIVATIVE, gelu, gelu_backward


def all_values() -> Tensor:
    """Every finite bfloat16."""
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    return values[values.isfinite()]


def slope(x: Tensor) -> Tensor:
    x = x.double().requires_grad_()
    return torch.autograd.grad(F.gelu(x).sum(), x)[0]


def test_every_value_is_within_a_rounding_and_a_little() -> None:
    """A rounding to bfloat16 changes 2^-9; the polynomial at most 4 * 4e-5, near -4."""
    x = all_values()
    ours, truth = gelu(x).double(), F.gelu(x.double())
    assert ((ours - truth).abs() <= 2**-8 * truth.abs() + 1.6e-4).all()
    assert (gelu(x[x > 4]) == x[x > 4]).all()
    assert (gelu(x[x < -4]) == 0).all()


def test_every_derivative_is_as_near() -> None:
    x = all_values()
    ours, truth = gelu_backward(torch.ones_like(x), x).double(), slope(x)
    assert ((ours - truth).abs() <= 2**-8 * truth.abs() + 6e-4).all()
    inside = x[x.abs() <= 3.9]
    ours, truth = gelu_backward(torch.ones_like(inside), inside).double(), slope(inside)
    assert ((ours - truth).abs() <= 2**-8 * truth.abs() + 5e-5).all()


def test_the_derivative_is_multiplied_with_the_gradient() -> None:
    x, gradient = random.normal(random.key(0), (2, 1000)).bfloat16()
    expected = gradient.double() * slope(x)
    torch.testing.assert_close(gelu_backward(gradient, x).double(), expected, rtol=2**-7, atol=1e-3)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([float("nan"), float("inf")], dtype=torch.bfloat16)
    assert gelu(x)[0].isnan()
    assert gelu(x)[1] == float("inf")
    assert gelu_backward(torch.ones_like(x), x)[0].isnan()


def test_other_dtypes_and_approximations_are_left_to_the_compiler() -> None:
    x = torch.zeros(3)
    assert gelu(x) is NotImplemented
    assert gelu(x.bfloat16(), approximate="tanh") is NotImplemented
    assert gelu_backward(x, x) is NotImplemented
    assert gelu_backward(x.bfloat16(), x.bfloat16(), approximate="tanh") is NotImplemented


@pytest.mark.parametrize("coefficients", [CDF, DERIVATIVE])
def test_the_polynomials_are_the_functions_at_the_limit(coefficients: tuple[float, ...]) -> None:
    """So that there is no step to the constants beyond."""
    total = 0.0
    for coefficient in coefficients[::-1]:
        total = total * 16 + coefficient
    assert abs(4 * total - 0.5) < 6e-4
