"""The search for a learning rate: what each trains on, what is suggested, and what is not read."""

import json
import math
from typing import Any

import pytest
import torch

from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.train import lr_find
from fcifar.train.config import make_config
from fcifar.train.lr_find import find, make_rates, prepare, suggest
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training

RATES = (0.001, 0.03, 1e20)


def search(recipe: Recipe, dataset: Dataset, runtime: Runtime, **options: Any) -> dict[str, Any]:
    short = prepare(recipe, 8, len(dataset.train_labels))
    return find(make_config(short, dataset, runtime=runtime), dataset, RATES, 8, **options)


def test_each_rate_trains_from_the_same_start(
    recipe: Recipe, dataset: Dataset, runtime: Runtime
) -> None:
    """As alone, step by step; a rate that diverges has no loss."""
    found = search(recipe, dataset, runtime)
    json.dumps(found, allow_nan=False)
    assert [each["rate"] for each in found["rates"]] == list(RATES)
    assert (found["steps"], found["averaged_steps"]) == (8, 2)
    assert found["rates"][2] == {"rate": 1e20, "loss": None, "standard_error": None}
    for each in found["rates"][:2]:
        own = prepare(recipe, 8, len(dataset.train_labels)).replace(learning_rate=each["rate"])
        training = make_training(make_config(own, dataset, runtime=runtime), dataset)
        state, seen = training.init(), []
        for _, inputs in zip(range(8), training.inputs(0), strict=False):
            before = float(state.totals.loss)
            state, _ = training.stages[0](state, inputs)
            seen.append((float(state.totals.loss) - before) / len(inputs.indices))
        assert each["loss"] == pytest.approx(sum(seen[-2:]) / 2, rel=1e-4)


def test_mapped_over_the_rates_it_is_the_same_to_rounding(
    recipe: Recipe, dataset: Dataset, runtime: Runtime
) -> None:
    one, other = (search(recipe, dataset, runtime, method=m) for m in ("loop", "vmap"))
    for a, b in zip(one["rates"][:2], other["rates"][:2], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert one["suggestion"] == other["suggestion"]


def test_test_images_are_not_read(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> None:
    """Without them, everything is the same."""
    recipe = recipe.replace(valid_fraction=0.2, patience=2, tta="mirror")
    expected = search(recipe, dataset, runtime)
    blind = dataset._replace(test_images=None, test_labels=None)  # any access would fail
    assert search(recipe, blind, runtime) == expected


def test_progress_counts_all_steps(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> None:
    seen: list[tuple[int, int]] = []
    search(recipe, dataset, runtime, progress=lambda what, done, total: seen.append((done, total)))
    assert seen == [(step, 24) for step in range(1, 25)]


def test_a_search_is_at_a_constant_rate_over_all_training_images(recipe: Recipe) -> None:
    recipe = recipe.replace(
        schedule="cosine", warmup_steps=3, swa_start=0.5, valid_fraction=0.2, epochs=9, tta="mirror"
    )
    found = prepare(recipe, steps=11, size=42)  # nine steps an epoch
    assert (found.epochs, found.schedule, found.warmup_steps, found.average) == (
        2,
        "constant",
        0,
        "",
    )
    assert not found.has_valid
    assert found.batch_size == recipe.batch_size
    with pytest.raises(UsageError, match="--steps is 0; it must be a whole number from 1 up"):
        prepare(recipe, 0, 42)


@pytest.mark.parametrize(("size", "steps"), [(50_000, 1000), (5_000, 100), (100, 10)])
def test_the_default_is_a_tenth_of_an_epoch(recipe: Recipe, size: int, steps: int) -> None:
    assert lr_find.default_steps(recipe.replace(batch_size=5, drop_last=False), size) == max(
        steps, min(size // 5, 100)
    )


@pytest.mark.parametrize(
    ("losses", "chosen", "reason"),
    [
        (
            [[2.0, 2.0], [1.0, 1.2], [1.1, 1.3], [9.0, 9.0]],
            2,
            "1 is the largest rate whose loss, 1.200, is within the noise (0.100) of the lowest, "
            "1.100 with 0.1",
        ),
        (
            [[2.0, 2.0], [1.0, 1.2], [1.0, 5.0], [9.0, 9.0]],
            1,
            "0.1 has the lowest loss, 1.100; the next larger rate has 3.000",
        ),
        (
            [[2.0, 2.0], [1.0, 1.2], [math.nan, 1.0], [math.inf, 1.0]],
            1,
            "0.1 has the lowest loss, 1.100; the next larger rate diverges",
        ),
        (
            [[4.0, 4.0], [3.0, 3.0], [2.0, 2.0], [1.0, 1.0]],
            3,
            "10 has the lowest loss, 1.000; it is the largest that was tried, so search on with "
            "another --highest",
        ),
        (
            [[1.0, 1.0], [3.0, 3.0], [3.0, 3.0], [4.0, 4.0]],
            0,
            "0.01 has the lowest loss, 1.000; the next larger rate has 3.000; it is the smallest "
            "that was tried, so search on with another --lowest",
        ),
    ],
)
def test_the_suggestion_and_its_reason(losses: list[list[float]], chosen: int, reason: str) -> None:
    assert suggest((0.01, 0.1, 1.0, 10.0), torch.tensor(losses)) == (chosen, reason)


def test_one_step_has_no_noise() -> None:
    assert suggest((0.1, 1.0), torch.tensor([[1.0], [1.0]]))[0] in (0, 1)
    with pytest.raises(UsageError, match="has a finite loss; give a smaller --lowest"):
        suggest((0.1, 1.0), torch.full((2, 3), math.nan))


def test_rates_are_at_equal_ratios() -> None:
    assert make_rates(1e-4, 1.0, 5) == [1e-4, 1e-3, 1e-2, 0.1, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, 3), "the range of rates is 1 to 0.1; --lowest must be above 0 and below"),
        ((0.0, 0.1, 3), "the range of rates is 0 to 0.1"),
        ((0.1, math.inf, 3), "the range of rates is 0.1 to inf"),
        ((0.1, math.nan, 3), "the range of rates is 0.1 to nan"),
        ((0.1, 1.0, 1), "--rates is 1; it must be a whole number from 2 up to 1,000"),
        ((0.1, 0.1001, 9), "9 rates between 0.1 and 0.1001 are too close to each other"),
    ],
)
def test_a_range_that_is_wrong_is_refused(
    arguments: tuple[float, float, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_rates(*arguments)
