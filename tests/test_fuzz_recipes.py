"""Recipes from strangers: whatever a manifest says, it makes a recipe that trains, or one line."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcifar import models, optim, random, recipes, tree
from fcifar.errors import UserError
from fcifar.recipes import Recipe
from fcifar.step import Batch, init_train_state, make_train_step

NUMBERS = (
    *(math.nan, math.inf, -math.inf, -0.0, 0.5, 1e-30, 1e30, 1e38, 1e39, 5e-324, 1e308, -1e308),
    *(1.0, 2.0, -1.5, 0.9999999999999999, 1e-45, 0, 1, 2, 4, -1, 1000, 10**9, 10**9 + 1, 2**31),
    *(2**63, -(2**63), 10**30, -(10**30), 10**400),
)
LETTERS = st.characters(exclude_categories=())  # control characters and lone surrogates as well
TEXTS = st.text(LETTERS, max_size=8) | st.sampled_from(("", "\x1b[31m", "a\nb", "x" * 10_000))
SCALARS = st.sampled_from(NUMBERS) | st.integers() | st.floats() | st.booleans() | st.none() | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = [field.name for field in dataclasses.fields(Recipe)]
AUGMENTS = st.builds(
    "{}{}{}".format,
    st.sampled_from([*recipes.AUGMENTS, "", "flop", "RANDOM_FLIP", "random_flip ", ":"]) | TEXTS,
    st.sampled_from(("", ":", "::", " ")),
    st.sampled_from(
        (
            *("", "0", "-0.0", "0.5", "1", "4", "10", "180", "10000", "10001", "23170", "1e6"),
            *("1e7", "1e39", "1e400", "1e-50", "-1", "--3", "nan", "inf", "4.0", "1_0", " 4"),
            *("0x10", "٣", "²", "None", "True", "1:2", "1,2", "(1,2)", "9" * 20, "9" * 5000),
        )
    )
    | TEXTS
    | st.sampled_from(NUMBERS).map(str),
)
LIKELY: dict[str, st.SearchStrategy] = {
    "model": st.sampled_from(list(models.MODELS)),
    "model_options": st.fixed_dictionaries(
        {}, optional={"hidden": st.integers(1, 50), "dropout": st.floats(0, 0.99)}
    ),
    "optimizer": st.sampled_from(("sgd", "adam", "adamw")),
    "learning_rate": st.sampled_from((0, -0.0, 1e-30, 1e-3, 1, 1e30)),
    "momentum": st.sampled_from((0, 0.5, 0.9999999999999999)),
    "nesterov": st.booleans(),
    "weight_decay": st.sampled_from((0, 1e-30, 0.1, 1e30)),
    "clip_norm": st.sampled_from((0, 1e-30, 1.0, 1e30)),
    "schedule": st.sampled_from(("constant", "linear", "cosine")),
    "warmup_steps": st.sampled_from((0, 1, 7, 10**9)),
    "batch_size": st.sampled_from((1, 4, 10**9)),
    "epochs": st.sampled_from((1, 2, 10**9)),
    "augment": st.lists(AUGMENTS, max_size=2),
    "valid_fraction": st.sampled_from((0, 0.1, 0.9999)),
    "patience": st.sampled_from((0, 1, 10**9)),
    "mean": st.lists(st.sampled_from((0.5, 0, -1e30, 1e30)), min_size=3, max_size=3),
    "std": st.lists(st.sampled_from((0.5, 1e-30, 1e30)), min_size=3, max_size=3),
}
STEPS = st.sampled_from((1, 2, 8, 1000, 10**9, 10**18))
SMALL = 10**6  # parameters of a model that a test may afford to initialise
BATCH = Batch(
    random.randint(random.key(0), (2, 3, 32, 32), 0, 256).to(torch.uint8), torch.arange(2)
)


def of(name: str) -> dict[str, Any]:
    return recipes.to_dict(recipes.get(name))


def is_one_line(error: UserError) -> None:
    text = str(error)
    assert text.isprintable(), text
    assert 10 < len(text) < 1000, text


def read(values: Any) -> Recipe | None:
    """The recipe, which reads back from its own JSON; or None with one line said."""
    try:
        recipe = recipes.from_dict(values)
    except UserError as error:
        is_one_line(error)
        return None
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe
    return recipe


def build(recipe: Recipe, total_steps: int) -> tuple[models.Model, optim.Optimizer] | None:
    """The parts of a valid recipe. One thing alone may be missing: steps to warm up in."""
    model = recipes.make_model(recipe, 10)
    recipes.make_preprocess(recipe)
    recipes.make_augment(recipe)
    try:
        rate = recipes.make_schedule(recipe, total_steps)
        optimizer = recipes.make_optimizer(recipe, total_steps)
    except UserError as error:
        is_one_line(error)
        assert recipe.warmup_steps >= total_steps
        return None
    for count in (0, recipe.warmup_steps, total_steps - 1, total_steps):
        now = rate if isinstance(rate, int | float) else float(rate(torch.tensor(count)))
        assert 0 <= now <= recipe.learning_rate * (1 + 1e-6), count
    return model, optimizer


@pytest.mark.parametrize("name", FIELDS)
@given(value=JSON, total_steps=STEPS)
def test_a_field_of_any_value(name: str, value: Any, total_steps: int) -> None:
    values = {**of("dropout-adam"), name: value}
    if recipe := read(values):
        build(recipe, total_steps)


@pytest.mark.parametrize("name", FIELDS)
@given(value=JSON)
def test_a_change_to_any_value(name: str, value: Any) -> None:
    """``replace`` is not given JSON alone: a list stays a list."""
    try:
        changed = recipes.get("blitz").replace(**{name: value})
    except UserError as error:
        is_one_line(error)
    else:
        build(changed, 100)


@given(values=JSON | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, JSON, max_size=8))
def test_any_value_for_a_recipe(values: Any) -> None:
    if recipe := read(values):
        build(recipe, 100)


@pytest.mark.parametrize("model", models.MODELS)
@given(
    options=st.dictionaries(
        st.sampled_from(("hidden", "dropout", "num_classes", "self")) | TEXTS, JSON, max_size=3
    )
)
def test_any_options_for_a_model(model: str, options: dict[str, Any]) -> None:
    if recipe := read({**of("conv3-aug"), "model": model, "model_options": options}):
        build(recipe, 100)


@given(text=AUGMENTS)
def test_any_text_for_an_augmentation(text: str) -> None:
    recipe = read({**of("blitz"), "augment": [text]})
    if recipe:
        images = recipes.make_augment(recipe)(random.key(0), BATCH.images)
        assert images.shape == BATCH.images.shape
        assert images.dtype == torch.uint8


@given(values=st.fixed_dictionaries({}, optional=LIKELY), total_steps=STEPS)
def test_a_valid_recipe_trains(values: dict[str, Any], total_steps: int) -> None:
    recipe = read({"name": "likely", **values})
    parts = recipe and build(recipe, total_steps)
    if not recipe or not parts:
        return
    model, optimizer = parts
    state = init_train_state(model, optimizer, key=random.key(0))
    assert sum(leaf.numel() for leaf in tree.leaves(state.variables)) < SMALL
    step = make_train_step(
        model,
        optimizer,
        augment=recipes.make_augment(recipe),
        preprocess=recipes.make_preprocess(recipe),
    )
    after, metrics = step(step(state, BATCH)[0], BATCH)
    assert int(after.step) == 2
    assert int(metrics.count) == len(BATCH.labels)
