"""Weight matching: of a permuted copy, of one group, and beside the algorithm of the paper."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fcifar import models, random, tree
from fcifar.analysis import matching, symmetries
from fcifar.models import Variables
from tests.analysis.test_symmetries import drawn, evaluated, shuffled
from tests.helpers.small import chosen_models, make_model


def assign(gains: Tensor) -> Tensor:
    return torch.as_tensor(linear_sum_assignment(gains.numpy(), maximize=True)[1])


@pytest.mark.parametrize("name", chosen_models())
def test_a_permuted_copy_is_found(name: str) -> None:
    model = make_model(name)
    found = symmetries.find(model)
    variables = drawn(model)
    copy = symmetries.permute(found, shuffled(found), variables)
    result = matching.match(found, variables, copy, assign)
    assert tree.equal(result.variables, variables)
    assert result.distance == 0 < result.distance_before
    assert result.distance_before == pytest.approx(matching.distance(variables, copy))


def test_one_group_is_matched_best() -> None:
    """Of all 120 orders of five hidden units, the one with the smallest distance."""
    model = evaluated(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.Linear(5, 10)))
    found = symmetries.find(model)
    assert [group.size for group in found.groups] == [5]
    first, second = drawn(model, 0), drawn(model, 1)
    result = matching.match(found, first, second, assign)
    distances = {
        order: matching.distance(first, symmetries.permute(found, [torch.tensor(order)], second))
        for order in itertools.permutations(range(5))
    }
    best = min(distances, key=lambda order: distances[order])
    assert result.permutations[0].tolist() == list(best)
    assert result.distance == pytest.approx(distances[best])


def test_it_is_algorithm_1_of_the_paper() -> None:
    """For a perceptron: P_l maximizes <P_l, A_l P_{l-1} B_l' + A_{l+1}' P_{l+1} B_{l+1}>."""
    model = evaluated(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 7, bias=False), nn.ReLU(),
            nn.Linear(7, 9, bias=False), nn.ReLU(), nn.Linear(9, 6, bias=False), nn.ReLU(),
            nn.Linear(6, 10, bias=False),
        )
    )  # fmt: skip
    found = symmetries.find(model)
    first, second = drawn(model, 0), drawn(model, 1)
    result = matching.match(found, first, second, assign)
    a, b = ([w.numpy() for w in v.params.values()] for v in (first, second))
    matrices = [np.eye(n) for n in (3072, 7, 9, 6, 10)]
    for _ in range(20):
        for i in (1, 2, 3):
            gains = a[i - 1] @ matrices[i - 1] @ b[i - 1].T + a[i].T @ matrices[i + 1] @ b[i]
            matrices[i] = np.eye(len(gains))[linear_sum_assignment(gains, maximize=True)[1]]
    orders = [matrix.argmax(1).tolist() for matrix in matrices[1:-1]]
    assert [order.tolist() for order in result.permutations] == orders
    assert result.distance < result.distance_before
    assert 2 <= result.sweeps < matching.SWEEPS


def test_the_function_and_the_first_network_stay() -> None:
    model = models.conv3()
    found = symmetries.find(model)
    first, second = model.init(random.key(0)), model.init(random.key(1))
    before = tree.digest((first, second))
    result = matching.match(found, first, second, assign)
    assert tree.digest((first, second)) == before
    images = random.normal(random.key(2), (4, 3, 32, 32))
    logits, _ = model.apply(result.variables, images)
    expected, _ = model.apply(second, images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    again = matching.match(found, first, result.variables, assign)
    assert all((p == torch.arange(len(p))).all() for p in again.permutations)
    assert again.sweeps == 1


def test_statistics_of_batch_norm_are_moved_and_not_compared() -> None:
    model = make_model("resnet18")
    found = symmetries.find(model)
    first = drawn(model)
    other = first._replace(buffers={n: 1 + 100 * v for n, v in first.buffers.items()})
    assert matching.distance(first, other) == 0
    copy = symmetries.permute(found, shuffled(found), other)
    result = matching.match(found, first, copy, assign)
    assert isinstance(result.variables, Variables)
    assert tree.equal(result.variables, other)
