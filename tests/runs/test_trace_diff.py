"""The first difference of two traces, and its amount against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from fcifar.runs.trace_diff import amount, counterpart, first_difference, origins
from fcifar.train.step_trace import COMPILED, Trace, record


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nudged(x: Tensor, *indices: int, ulps: int = 1) -> Tensor:
    result = x.clone()
    for _ in range(ulps):
        flat = result.view(-1)
        flat[list(indices)] = torch.nextafter(flat[list(indices)], torch.tensor(math.inf).to(x))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ulps", [1, 3])
def test_amounts(dtype: torch.dtype, ulps: int) -> None:
    x = drawn(5, 7).to(dtype)
    y = nudged(x, 3, 8, 20, ulps=ulps)
    found = amount(x, y)
    assert (found["elements"], found["differing"], found["ulps"]) == (35, 3, ulps)
    assert found["largest"] == (x.double() - y.double()).abs().max().item()
    assert amount(x, x)["differing"] == 0


def test_ulps_across_zero_and_between_powers_of_two() -> None:
    tiny = 2.0**-149
    assert amount(torch.tensor([-tiny]), torch.tensor([tiny]))["ulps"] == 2
    assert amount(torch.tensor([0.0]), torch.tensor([-0.0]))["ulps"] == 0
    assert amount(torch.tensor([0.0]), torch.tensor([-0.0]))["differing"] == 1
    assert amount(torch.tensor([1.0]), torch.tensor([2.0]))["ulps"] == 2**23
    assert amount(torch.tensor([1, 5]), torch.tensor([1, 3])) == {
        "elements": 2,
        "differing": 1,
        "largest": 2.0,
        "order": "same",
    }
    assert amount(torch.tensor([1.0]), torch.tensor([math.nan]))["largest"] is None


def test_another_layout_is_compared_in_sorted_order() -> None:
    x = drawn(6, 4)
    found = amount(x, nudged(x, 2).t().contiguous())
    assert (found["order"], found["differing"], found["ulps"]) == ("sorted", 1, 1)
    found = amount(x, nudged(x, 2).view(24))
    assert (found["order"], found["differing"]) == ("same", 1)


def chain(x: Tensor, bias: Tensor, late: Tensor) -> Tensor:
    y = x + 1
    z = y * bias
    return (z - 2).exp() + late


def test_the_first_operation_and_the_origins() -> None:
    x, ones, zeros = drawn(4, 4), torch.ones(4, 4), torch.zeros(4, 4)
    a, b = (record(chain, x, bias, zeros)[0] for bias in (ones, nudged(ones, 5)))
    found = first_difference(a, b)
    assert found is not None
    assert found.place is not None
    assert found.place[:2] == (1, 0)
    assert a.operations[found.operation].name == "aten.mul.Tensor"
    assert found.equal == 1
    assert first_difference(a, a) is None
    assert origins(a, a) == ([], 0)
    # All from the second on differ; that one has other inputs already.
    assert origins(a, b) == ([], 4)
    # As if the multiplication itself rounded in another way.
    operations = list(b.operations)
    operations[1] = operations[1]._replace(inputs=a.operations[1].inputs)
    assert origins(a, b._replace(operations=tuple(operations))) == ([1], 4)


def test_other_operations_are_told() -> None:
    x = drawn(3)
    a, b = record(lambda: (x + 1).exp())[0], record(lambda: (x + 1).sin())[0]
    found = first_difference(a, b)
    assert found is not None
    assert found.place is None
    assert found.operation == 1
    longer = first_difference(a, record(lambda: (x + 1).exp() * 2)[0])
    assert longer is not None
    assert (longer.place, longer.operation) == (None, 2)


def kernels(*outputs: Tensor) -> Trace:
    """A trace as of a compiled step, of one kernel for each output."""
    trace, _ = record(lambda: [x.clone() for x in outputs])
    return trace._replace(kind=COMPILED)


def test_a_compiled_step_is_compared_by_value() -> None:
    x, w = drawn(8, 6), drawn(6, 9, seed=1)
    eager, _ = record(lambda: ((x + 1).relu() @ w).tanh())
    hidden = (x + 1).relu()
    product = hidden @ w
    # Another order, another layout, and an output that the eager step does not have.
    compiled = kernels(hidden.t(), drawn(8, 9, seed=3), nudged(product, 4).view(72))
    found = first_difference(eager, compiled)
    assert found is not None
    assert found.place is not None
    assert eager.operations[found.operation].name == "aten.mm.default"
    assert (found.other, found.equal, found.without) == (2, 1, 1)
    turned = first_difference(compiled, eager)
    assert turned is not None
    assert (turned.operation, turned.other) == (found.other, found.operation)
    assert first_difference(eager, kernels(hidden, product)) is None


def test_the_nearest_counterpart_is_taken() -> None:
    """An average of weights is near to them; the nearest is what rounding has changed."""
    weights = drawn(50)
    eager, _ = record(lambda: (weights * 1.0001, weights.clone(), weights * 1.0002))
    (output,) = kernels(nudged(weights, 1, 2)).operations[0].outputs
    place, gap = counterpart(output, eager.operations)
    assert place == (1, 0)
    assert 0 < gap < 1e-6
    (few,) = kernels(nudged(weights[:3], 1)).operations[0].outputs
    eager, _ = record(lambda: weights[:3].clone())
    assert counterpart(few, eager.operations) == (None, math.inf), "by chance, perhaps"
