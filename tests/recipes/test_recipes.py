"""Recipes as values: what they refuse, and in which words."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fcifar import random, recipes
from fcifar.errors import UsageError, shown
from fcifar.recipes import Recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 10**30}, "epochs is 10+; it must be a whole number from 1 up to 1,000,000,000"),
        ({"epochs": 10**5000}, "epochs is a int too large to show; it must be a whole number"),
        ({"batch_size": True}, "batch_size is True; it must be a whole number from 1 up"),
        ({"patience": 1.0}, "patience is 1.0; it must be a whole number from 0 up"),
        (
            {"learning_rate": 10**400},
            "learning_rate is 10+.*; it must be 0, or a number from 1e-30",
        ),
        ({"learning_rate": 1e31}, r"learning_rate is 1e\+31; .* to 1e\+30"),
        ({"weight_decay": math.inf}, "weight_decay is inf; it must be 0, or"),
        ({"clip_norm": 1e-46}, "clip_norm is 1e-46; it must be 0, or"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'; it must be 0, or a number"),
        ({"nesterov": 1}, "nesterov is 1; it must be true or false"),
        ({"restore_best": "no"}, "restore_best is 'no'; it must be true or false"),
        ({"name": ""}, "a recipe needs a name"),
        ({"name": "a\nb"}, r"name is 'a\\nb'; it must be one line of printable text"),
        ({"notes": "\x1b[31m"}, "notes is .*; it must be one line of printable text"),
        ({"summary": None}, "summary is None; it must be one line"),
        ({"model": ["lenet"]}, r"model is \['lenet'\]; it must be one of lenet"),
        ({"optimizer": None}, "optimizer is None; it must be one of sgd"),
        ({"schedule": {}}, "schedule is {}; it must be one of constant"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\); it must be three numbers"),
        ({"mean": (0.5, 0.5, math.nan)}, "mean is .* three numbers from -1e"),
        ({"std": (0.5, 0.5, 0.0)}, "std is .* three numbers from 1e-30"),
        ({"std": (1, 1, "1")}, "std is .* three numbers"),
        ({"std": 1.0}, "std is 1.0; it must be three numbers"),
        ({"model_options": None}, "model_options is None; it must be options by name"),
        ({"model_options": {"hidden": -1}}, "do not fit the model lenet: hidden is -1"),
        ({"model_options": {"hidden": 84.0}}, "hidden is 84.0; it must be a whole number from 1"),
        ({"model_options": {"hidden": 10**9}}, "131,000,.* parameters; at most 200,000,000"),
        ({"model_options": {"depth": 3}}, "the model lenet, which takes hidden and dropout"),
        ({"model_options": {"num_classes": 3}}, "the model lenet, which takes hidden and dropout"),
        ({"augment": "cutout:8"}, "augment is 'cutout:8'; it must be names such as"),
        ({"augment": ("random_crop",)}, "'random_crop' needs a strength; give random_crop:PADDING"),
        ({"augment": ("color_jitter",)}, "needs a strength; give color_jitter:STRENGTH"),
        ({"augment": ("random_crop:",)}, "cannot be used: what follows the colon must be a number"),
        ({"augment": ("random_crop:1000000000",)}, "cannot be used: .* from 0 to 10,000"),
        ({"augment": ("random_rotation:1e400",)}, "cannot be used: .* from 0 to 1,000,000"),
        ({"augment": ("cutout:" + "9" * 5000,)}, "what follows the colon must be a number"),
    ],
)
def test_a_value_out_of_its_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        recipes.get("blitz").replace(**changes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("values", [None, [], "blitz", 3, {}, {"name": "a", "x\x1b": 1}])
def test_what_is_no_recipe_is_named(values: Any) -> None:
    with pytest.raises(
        UsageError, match=r"not a recipe: .* a recipe has alternating_flip, augment, batch_size"
    ):
        recipes.from_dict(values)


def test_the_largest_values_train() -> None:
    recipe = recipes.Recipe(
        name="largest",
        learning_rate=1e30,
        weight_decay=1e30,
        clip_norm=1e30,
        schedule="cosine",
        epochs=10**9,
        warmup_steps=10**9,
        std=(1e-30, 1e30, 1.0),
    )
    rate = recipes.make_schedule(recipe, total_steps=2**60)
    assert not isinstance(rate, float)
    assert float(rate(torch.tensor(10**9))) == pytest.approx(1e30)
    assert float(rate(torch.tensor(2**60))) == 0
    assert recipes.make_preprocess(recipe)(torch.ones(1, 3, 2, 2)).shape == (1, 3, 2, 2)


def test_a_recipe_costs_no_memory_and_no_draw() -> None:
    before = torch.random.get_rng_state()
    wide = recipes.get("blitz").replace(model_options={"hidden": 700_000})
    recipes.make_model(wide, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_message_shows_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown(random.key(0)[:, None]).isprintable()
    assert len(shown("x" * 10**6)) == 100
    endless: list = []
    endless.append(endless)
    for _ in range(10**5):
        endless = [endless]
    assert shown(endless) == "a list too large to show"


@pytest.mark.parametrize(
    "recipe",
    [
        *map(recipes.get, recipes.RECIPES),
        recipes.get("speed94").replace(model="resnet18", model_options={}, batch_size=2),
    ],
    ids=lambda recipe: f"{recipe.name}-{recipe.model}",
)
def test_operations_are_counted_as_torch_counts_them(recipe: Recipe) -> None:
    model, key = recipes.make_model(recipe, 10), random.key(0, device="meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.apply(model.init(key), torch.empty(2, 3, 32, 32), key=key, train=True)
    expected = 3 * counter.get_total_flops() * recipe.batch_size / 2
    assert recipes.count_flops(recipe) == expected > 0


def test_a_recipe_made_from_another_does_not_keep_its_measured_accuracy() -> None:
    measured = [recipe.expected for recipe in recipes.RECIPES.values() if recipe.expected]
    assert len(set(measured)) == len(measured) > 5
