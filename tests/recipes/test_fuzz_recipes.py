"""Recipes from strangers: whatever a manifest says, it makes a recipe that trains, or one line."""

import dataclasses
import inspect
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcifar import models, optim, random, recipes, tree
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.step import Batch, init_train_state, make_train_step
from tests.helpers.small import chosen_models

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
OPTIONS = sorted({o for make in models.MODELS.values() for o in inspect.signature(make).parameters})
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
RESOLUTIONS = (
    st.builds(
        "{}{}".format,
        st.sampled_from((15, 16, 24, 32, 64, 65, "", "x", "9" * 30)),
        st.sampled_from(("", ":0.5", ":1", ":0", ":1e-9", ":nan", ":0.9999999999999999", ":")),
    )
    | TEXTS
)
NETWORKS = st.one_of(
    st.tuples(
        st.sampled_from(("lenet", "conv3")),
        st.fixed_dictionaries({}, optional={"dropout": st.floats(0, 0.99)}),
    ),
    st.tuples(
        st.just("speednet"),
        st.fixed_dictionaries(
            {"widths": st.lists(st.integers(1, 30), min_size=1, max_size=3)},
            optional={
                "depth": st.sampled_from((2, 3)),
                "act": st.sampled_from(("gelu", "silu")),
                "whiten": st.booleans(),
                "dirac": st.booleans(),
                "momentum": st.floats(0, 1),
                "logit_scale": st.floats(0, 1e6),
                "head_std": st.floats(0, 1e6),
            },
        ),
    ),
    st.tuples(st.just("resnet18"), st.just({"width": 2})),
)
WARMUPS = st.sampled_from(
    (
        {},
        *({"warmup_steps": steps} for steps in (1, 7, 10**9)),
        *({"warmup_fraction": fraction} for fraction in (0.2, 0.999)),
    )
)
AVERAGES = st.sampled_from(
    (
        {},
        {"ema_decay": 0.999},
        {"swa_start": 0.5},
        *({"lookahead_every": every} for every in (1, 5, 10**9)),
    )
)
PRIVACY = st.sampled_from(
    (*({} for _ in range(4)), {"dp_clip": 1e-30}, {"dp_clip": 1.0, "dp_noise": 1e30})
)
LIKELY: dict[str, st.SearchStrategy] = {
    "optimizer": st.sampled_from(
        ("sgd", "adam", "adamw", "muon", "schedule_free", "schedule_free_adamw")
    ),
    "sam_rho": st.sampled_from((0, 0, 0, 1e-30, 0.05, 1e30)),
    "micro_batch": st.sampled_from((0, 0, 1, 3, 10**9)),
    "group_learning_rates": st.dictionaries(
        st.sampled_from(("kernel", "linear", "vector", "whiten")), st.sampled_from((1e-30, 0.1, 9))
    ),
    "group_momentum": st.sampled_from((0, 0.85)),
    "whiten_epochs": st.sampled_from((0, 1e-30, 0.5, 1e30)),
    "initial_rate": st.sampled_from((0, 0.5)),
    "final_rate": st.sampled_from((0, 0.5)),
    "lookahead_decay": st.sampled_from((0, 0.95)),
    "loss_reduction": st.sampled_from(("mean", "sum")),
    "label_smoothing": st.sampled_from((0, 0.2, 0.9999)),
    "resolutions": st.sampled_from(([], ["24"], ["16:1e-9", "32"], ["24:0.5", "28:0.7", "32"])),
    "tta": st.sampled_from(("none", "mirror", "translate")),
    "learning_rate": st.sampled_from((0, -0.0, 1e-30, 1e-3, 1, 1e30)),
    "momentum": st.sampled_from((0, 0.5, 0.9999999999999999)),
    "nesterov": st.booleans(),
    "weight_decay": st.sampled_from((0, 1e-30, 0.1, 1e30)),
    "clip_norm": st.sampled_from((0, 1e-30, 1.0, 1e30)),
    "schedule": st.sampled_from(("constant", "linear", "cosine", "multistep")),
    "milestones": st.sampled_from(([], [0.5], [1e-30, 0.5, 0.9999999999999999])),
    "milestone_factor": st.sampled_from((0, 0.1, 1e-30)),
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


def is_one_line(error: UsageError) -> None:
    text = str(error)
    assert text.isprintable(), text
    assert 10 < len(text) < 1000, text


def read(values: Any) -> Recipe | None:
    """The recipe, which reads back from its own JSON; or None with one line said."""
    try:
        recipe = recipes.from_dict(values)
    except UsageError as error:
        is_one_line(error)
        return None
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe
    return recipe


def build(recipe: Recipe, total_steps: int) -> tuple[models.Model, optim.Optimizer] | None:
    """The parts of a valid recipe. One thing alone may be missing: steps to warm up in."""
    model = recipes.make_model(recipe, 10)
    recipes.make_preprocess(recipe)
    recipes.make_augment(recipe)
    recipes.make_average(recipe, total_steps)
    stages = recipes.make_stages(recipe, total_steps)
    assert [start for start, _ in stages] == sorted({start for start, _ in stages})
    assert stages[0][0] == 0
    assert stages[-1][0] < total_steps
    try:
        rate = recipes.make_schedule(recipe, total_steps)
        optimizer = recipes.make_optimizer(recipe, total_steps)
    except UsageError as error:
        is_one_line(error)
        warmup = recipe.warmup_steps or round(recipe.warmup_fraction * total_steps)
        assert warmup >= total_steps
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
    except UsageError as error:
        is_one_line(error)
    else:
        build(changed, 100)


@given(values=JSON | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, JSON, max_size=8))
def test_any_value_for_a_recipe(values: Any) -> None:
    if recipe := read(values):
        build(recipe, 100)


@pytest.mark.parametrize("model", chosen_models())
@given(
    options=st.dictionaries(
        st.sampled_from((*OPTIONS, "num_classes", "self")) | TEXTS, JSON, max_size=3
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


@given(texts=st.lists(RESOLUTIONS, max_size=3), total_steps=STEPS)
def test_any_texts_for_resolutions(texts: list[str], total_steps: int) -> None:
    if recipe := read({**of("speed90"), "resolutions": texts}):
        build(recipe, total_steps)


@given(
    network=NETWORKS,
    warmup=WARMUPS,
    average=AVERAGES,
    privacy=PRIVACY,
    values=st.fixed_dictionaries({}, optional=LIKELY),
    total_steps=STEPS,
)
@settings(max_examples=settings.default.max_examples // 8)
def test_a_valid_recipe_trains(
    network: tuple[str, dict[str, Any]],
    warmup: dict[str, Any],
    average: dict[str, Any],
    privacy: dict[str, Any],
    values: dict[str, Any],
    total_steps: int,
) -> None:
    own = {"model": network[0], "model_options": network[1], **warmup, **average, **privacy}
    values = {**own, **values}
    if values.get("optimizer") in ("adam", "adamw"):
        values = {**values, "momentum": 0, "group_learning_rates": {}}
    recipe = read({"name": "likely", **values})
    parts = recipe and build(recipe, total_steps)
    if not recipe or not parts:
        return
    model, optimizer = parts
    kept = recipes.make_average(recipe, total_steps)
    _, stage = recipes.make_stages(recipe, total_steps)[0]
    preprocess = recipes.make_preprocess(recipe)
    state = init_train_state(
        model, optimizer, key=random.key(0), average=kept, sample=preprocess(BATCH.images)
    )
    assert sum(leaf.numel() for leaf in tree.leaves(state.variables)) < SMALL
    step = make_train_step(
        model,
        optimizer,
        augment=recipes.make_augment(recipe),
        preprocess=recipes.make_preprocess(recipe, stage.size),
        loss=recipes.make_loss(recipe),
        reduction=recipes.make_reduction(recipe),
        gradient=recipes.make_gradient(recipe),
        average=kept,
    )
    after, metrics = step(step(state, BATCH)[0], BATCH)
    assert int(after.step) == 2
    assert int(metrics.count) == len(BATCH.labels)
