"""From the values of a recipe to the parts of a step: the recipes of the speed records."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import models, optim, precision, random, recipes, schedules, tree
from fcifar.augment import tta
from fcifar.errors import UsageError
from fcifar.grads import of_batch
from fcifar.losses import cross_entropy
from fcifar.models import Params
from fcifar.optim import Optimizer
from fcifar.recipes import Recipe
from fcifar.recipes.build import group_of
from fcifar.recipes.named import Stage, named_stages
from fcifar.step import Batch, init_train_state, make_train_step
from tests.helpers.small import make_model, make_recipe


def recipe_of(**values: Any) -> Recipe:
    return Recipe(name="test", **values)


# JSON and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_comes_back_from_json(name: str) -> None:
    recipe = make_recipe(name)
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(recipes.get(name))))) == (
        recipes.get(name)
    )
    text = json.dumps(recipes.to_dict(recipe), allow_nan=False)
    back = recipes.from_dict(json.loads(text))
    assert back == recipe
    assert json.dumps(recipes.to_dict(back), allow_nan=False) == text
    a, b = (recipes.make_model(r, 10).init(random.key(0)) for r in (recipe, back))
    assert tree.equal(a, b)


def test_a_recipe_of_before_private_training_is_read() -> None:
    values = recipes.to_dict(recipes.get("blitz"))
    assert (values.pop("dp_clip"), values.pop("dp_noise")) == (0.0, 0.0)
    assert recipes.from_dict(values) == recipes.get("blitz")


def test_a_recipe_of_before_micro_batches_and_sam_is_read() -> None:
    values = recipes.to_dict(recipes.get("blitz"))
    found = [values.pop(name) for name in ("micro_batch", "sam_rho", "schedule_free_b1")]
    assert found == [0, 0.0, 0.9]
    assert recipes.from_dict(values) == recipes.get("blitz")


def test_the_gradient_is_the_batchs_unless_a_setting_changes_it() -> None:
    assert recipes.make_gradient(recipe_of()) is of_batch
    for changes in ({"dp_clip": 1.0}, {"micro_batch": 2}, {"sam_rho": 0.1}):
        assert recipes.make_gradient(recipe_of(**changes)) is not of_batch


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_the_gradient_of_a_recipe_in_micro_batches_is_the_batchs(
    reduction: str, rho: float, make_batch
) -> None:
    """And that of private training, whose chunks they are."""
    model, batch = models.lenet(), make_batch(7)
    params = model.init(random.key(0)).params
    base = recipe_of(batch_size=7, loss_reduction=reduction, sam_rho=rho)
    private = {} if rho else {"dp_clip": 0.5}

    def objective(params: models.Params, batch: Batch, key: Tensor) -> Any:
        variables = models.Variables(params, {})
        logits, buffers = model.apply(variables, batch.images / 255, key=key, train=True)
        losses = cross_entropy(logits, batch.labels)
        return recipes.make_reduction(base)(losses), (losses, logits, buffers)

    for changes in ({}, private):
        whole, parts = (
            recipes.make_gradient(base.replace(micro_batch=size, **changes))(objective)(
                params, batch, random.key(1)
            )
            for size in (0, 3)
        )
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_sam_doubles_the_arithmetic_of_a_step() -> None:
    flops = recipes.count_flops(recipe_of())
    assert recipes.count_flops(recipe_of(sam_rho=0.1)) == 2 * flops
    assert recipes.count_flops(recipe_of(micro_batch=1)) == flops


@pytest.mark.parametrize("name", ["schedule_free", "schedule_free_adamw"])
def test_schedule_free_optimizers_have_the_numbers_of_the_recipe(name: str) -> None:
    recipe = recipe_of(
        optimizer=name, learning_rate=0.1, weight_decay=0.01, warmup_steps=2, schedule_free_b1=0.7
    )
    rate = schedules.warmup(schedules.constant_schedule(0.1), 0.0, 0.1, 2)
    ours = optim.OPTIMIZERS[name](rate, 0.7, weight_decay=0.01)
    made, params = recipes.make_optimizer(recipe, 10), torch.ones(3)
    states = [ours.init(params), made.init(params)]
    at = [params, params]
    for i in range(5):
        for j, optimizer in enumerate((ours, made)):
            updates, states[j] = optimizer.update(at[j] + i, states[j], at[j])
            at[j] = optim.apply_updates(at[j], updates)
    assert torch.equal(*at)
    assert torch.equal(*(o.value(p, s) for o, p, s in zip((ours, made), at, states, strict=True)))


@pytest.mark.parametrize(
    ("changes", "size", "processes", "message"),
    [
        ({"micro_batch": 3, "batch_size": 4}, 8, 2, "micro_batch is 3, but each of 2 processes ha"),
        ({"micro_batch": 2, "batch_size": 4}, 8, 2, ""),
    ],
)
def test_a_micro_batch_fits_the_part_of_a_process(
    changes: dict[str, Any], size: int, processes: int, message: str
) -> None:
    recipe = recipe_of(**changes)
    if not message:
        recipes.check_sizes(recipe, "tiny", size, 0, 0, processes)
        return
    with pytest.raises(UsageError, match=message):
        recipes.check_sizes(recipe, "tiny", size, 0, 0, processes)


def test_a_list_for_a_network_comes_back_as_a_tuple() -> None:
    """As JSON has it, for a recipe that was read must equal the one that was written."""
    values = recipes.to_dict(recipe_of(model="speednet", model_options={"widths": (8, 16)}))
    values["model_options"]["widths"] = [8, 16]
    recipe = recipes.from_dict(values)
    assert recipe.model_options == {"widths": (8, 16)}
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe


# Ranges -------------------------------------------------------------------------------------------

PARTS = (
    *("momentum", "group_momentum", "warmup_fraction", "initial_rate", "final_rate"),
    *("lookahead_decay", "ema_decay", "swa_start", "label_smoothing"),
)


@pytest.mark.parametrize("name", PARTS)
def test_parts_lie_below_one(name: str) -> None:
    assert getattr(recipe_of(**{name: 0.5}), name) == 0.5
    assert getattr(recipe_of(**{name: 0}), name) == 0
    with pytest.raises(UsageError, match=rf"{name} is 1.0; it must lie in \[0, 1\)"):
        recipe_of(**{name: 1.0})
    for value in (-0.1, math.nan, math.inf, True, "0.5", None):
        with pytest.raises(UsageError, match=f"{name} is .*; it must be 0, or a number from 1e-30"):
            recipe_of(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of sgd, adam, adamw, muon"),
        ({"loss_reduction": "max"}, "loss_reduction is 'max'; it must be one of mean, sum"),
        ({"tta": "crop"}, "tta is 'crop'; it must be one of none, mirror, translate"),
        ({"tta": None}, "tta is None; it must be one of none"),
        ({"precision": "fp16"}, "precision is 'fp16'; it must be one of fp32, bf16"),
        ({"compile": "yes"}, "compile is 'yes'; it must be true or false"),
        ({"alternating_flip": 1}, "alternating_flip is 1; it must be true or false"),
        ({"whiten_epochs": -1}, "whiten_epochs is -1; it must be 0, or a number from 1e-30"),
        ({"lookahead_every": 2.5}, "lookahead_every is 2.5; it must be a whole number from 0 up"),
        ({"lookahead_every": -1}, "lookahead_every is -1; it must be a whole number from 0 up"),
        ({"group_learning_rates": {"bias": 1.0}}, "must be numbers by group, of kernel, linear,"),
        ({"group_learning_rates": [0.1]}, r"group_learning_rates is \[0.1\]; it must be numbers"),
        ({"group_learning_rates": {"vector": 0}}, "of vector is 0; it must be above"),
        ({"group_learning_rates": {"vector": -1}}, "group_learning_rates of vector is -1; it must"),
        ({"group_learning_rates": {"vector": "1"}}, "group_learning_rates of vector is '1'"),
        (
            {"optimizer": "adam", "group_learning_rates": {"vector": 1}},
            "group_learning_rates needs the optimizer sgd or muon",
        ),
        (
            {"optimizer": "adam", "whiten_epochs": 1.0},
            "whiten_epochs needs the optimizer sgd or muon, not adam",
        ),
        (
            {"optimizer": "adamw", "momentum": 0.9},
            "momentum needs the optimizer sgd or muon, not",
        ),
        (
            {"optimizer": "muon", "momentum": 0.6, "nesterov": True},
            "nesterov needs the optimizer sgd, not muon",
        ),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "both set the warm-up; give one of them"),
        ({"lookahead_every": 5, "ema_decay": 0.9}, "are two averages; give one of them"),
        ({"schedule": "multistep"}, "schedule multistep needs milestones; give milestones, such"),
        ({"milestones": 0.5}, "milestones is 0.5; it must be fractions of the run that rise"),
        ({"milestones": (0.5, 0.5)}, r"milestones is \(0.5, 0.5\); it must be fractions"),
        ({"milestones": (0.75, 0.5)}, "it must be fractions of the run that rise"),
        ({"milestones": (0.0,)}, r"milestones is \(0.0,\); it must be fractions"),
        ({"milestones": (1,)}, "it must be fractions of the run that rise, such as 0.5,0.75"),
        ({"milestones": (math.nan,)}, "milestones is .*; it must be fractions"),
        ({"milestones": ("0.5",)}, "milestones is .*; it must be fractions"),
        ({"milestone_factor": 1.0}, r"milestone_factor is 1.0; it must lie in \[0, 1\)"),
        (
            {"lookahead_every": 5, "swa_start": 0.9},
            "lookahead_every and swa_start are two averages",
        ),
        ({"ema_decay": 0.9, "swa_start": 0.9}, "ema_decay and swa_start are two averages; give"),
        (
            {"swa_start": 0.5, "patience": 2, "valid_fraction": 0.2},
            "swa_start averages from a part of the whole run on, and patience may stop it before",
        ),
        ({"resolutions": "24:0.5"}, "resolutions is '24:0.5'; it must be texts such as 24:0.5"),
        ({"resolutions": ["32"]}, r"resolutions is \['32'\]; it must be texts"),
        ({"resolutions": (32,)}, "resolutions has 32; each must be SIZE:PART, such as 24:0.5"),
        ({"resolutions": ("24:0.5", "32")}, "resolutions has 24, and lenet takes no images of"),
        ({"dp_clip": -1.0}, "dp_clip is -1.0; it must be 0, or a number from 1e-30"),
        ({"dp_clip": True}, "dp_clip is True; it must be 0, or a number from 1e-30"),
        ({"dp_noise": math.nan, "dp_clip": 1}, "dp_noise is nan; it must be 0, or a number from"),
        ({"dp_clip": 1, "sam_rho": 0.1}, "dp_clip and sam_rho each define the gradient of a step"),
        ({"sam_rho": -0.1}, "sam_rho is -0.1; it must be 0, or a number from 1e-30"),
        ({"micro_batch": 5}, "micro_batch is 5, and batch_size 4; give at most that, or 0 for"),
        ({"micro_batch": -1}, "micro_batch is -1; it must be a whole number from 0 up"),
        ({"micro_batch": 1.5}, "micro_batch is 1.5; it must be a whole number from 0 up"),
        ({"schedule_free_b1": 0}, "schedule_free_b1 is 0; it must lie between 0 and 1, such as"),
        (
            {"optimizer": "schedule_free", "momentum": 0.9},
            "momentum needs the optimizer sgd or muon, not schedule_free",
        ),
        (
            {"optimizer": "schedule_free", "ema_decay": 0.9},
            "ema_decay and the optimizer schedule_free are two averages; give one of them",
        ),
        ({"dp_noise": 0.5}, "dp_noise is relative to dp_clip; give dp_clip"),
        (
            {"dp_sampling": "poisson"},
            "dp_sampling is for private training; give dp_clip, such as 1",
        ),
        ({"dp_delta": 1e-6}, "dp_delta is for private training; give dp_clip, such as 1"),
        ({"dp_clip": 1, "dp_delta": 1.0}, r"dp_delta is 1.0; it must lie in \[0, 1\)"),
        ({"dp_clip": 1, "dp_sampling": "uniform"}, "dp_sampling is 'uniform'; it must be one of"),
        ({"dp_clip": 1, "class_weights": "balanced"}, "class_weights are counts of the labels"),
        ({"dp_clip": 1, "model": "resnet18"}, "dp_clip needs .* and resnet18 has batch norm"),
        ({"dp_clip": 1, "model": "speednet"}, "dp_clip needs .* and speednet has batch norm"),
        ({"model": "speednet", "model_options": {"act": "relu"}}, "do not fit the model speednet:"),
        ({"model": "speednet", "model_options": {"act": {}}}, "act is {}; it must be gelu or silu"),
        ({"model": "speednet", "model_options": {"whiten": 1}}, "whiten is 1; it must be true"),
        ({"model": "speednet", "model_options": {"depth": 2.0}}, "depth is 2.0; it must be 2 or"),
        ({"model": "speednet", "model_options": {"widths": (10**9,)}}, "at most 200,000,000"),
        ({"model": "resnet18", "model_options": {"width": 10**9}}, "at most 200,000,000"),
        ({"model": "resnet18", "model_options": {"widths": (4,)}}, "which takes width"),
    ],
)
def test_a_value_out_of_its_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        recipe_of(**changes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


# Stages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "stages"),
    [
        ((), [(0, 1.0)]),
        (("32",), [(32, 1.0)]),
        (("24:1",), [(24, 1.0)]),
        (("24:0.5", "32"), [(24, 0.5), (32, 1.0)]),
        (("16:0.25", "64:1e-0"), [(16, 0.25), (64, 1.0)]),
        (("16:0.1", "20:0.2", "24:0.9", "20:1.0"), [(16, 0.1), (20, 0.2), (24, 0.9), (20, 1.0)]),
    ],
)
def test_stages_are_read(texts: tuple[str, ...], stages: list[tuple[int, float]]) -> None:
    assert list(named_stages(texts)) == [Stage(*stage) for stage in stages]


@pytest.mark.parametrize(
    "texts",
    [
        *(("",), ("x",), ("24:",), ("24:x", "32"), (":0.5", "32"), ("24.0",), ("24:0.5:1",)),
        *(("24:0.5",), ("24", "32"), ("24:0.5", "32:0.5"), ("24:0.6", "32:0.5", "32")),
        *(("24:0", "32"), ("24:-1", "32"), ("24:0.5", "32:1.5"), ("24:2",), ("24:nan",)),
        *(("24:nan", "32"), ("24:0.5", "28:nan", "32"), ("24:inf",), ("nan:0.5", "32")),
        *(("15",), ("65",), ("-24",), ("0",), ("24:0.5", "9" * 30), ("9" * 5000,), ("\x1b",)),
        *((None,), (24,), (b"24",)),
    ],
)
def test_stages_of_another_form_are_refused(texts: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"^resolutions (is|has) ") as refused:
        named_stages(texts)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("texts", "steps", "starts"),
    [
        ((), 10, {0: 0}),
        (("24:0.5", "32"), 10, {0: 24, 5: 32}),
        (("24:0.5", "32"), 1, {0: 32}),
        (("24:0.3", "28:0.7", "32"), 1, {0: 28}),
        (("24:0.3", "28:0.7", "32"), 100, {0: 24, 30: 28, 70: 32}),
        (("24:0.001", "32"), 100, {0: 32}),
        (("24:0.999", "32"), 100, {0: 24}),
        (("24:0.5", "28:0.501", "32"), 100, {0: 24, 50: 32}),
    ],
)
def test_stages_begin_where_they_should(
    texts: tuple[str, ...], steps: int, starts: dict[int, int]
) -> None:
    """Each step has one; a stage without a step is left out."""
    recipe = recipe_of(model="resnet18", model_options={"width": 4}, resolutions=texts)
    found = recipes.make_stages(recipe, steps)
    assert {start: stage.size for start, stage in found} == starts


def test_a_stage_resizes_what_was_normalised(make_batch) -> None:
    recipe = recipes.get("speed94")
    images = make_batch(2).images
    whole = recipes.make_preprocess(recipe)(images)
    assert recipes.make_preprocess(recipe, 32)(images).shape[-2:] == (32, 32)
    assert torch.equal(recipes.make_preprocess(recipe, 32)(images), whole)
    small = recipes.make_preprocess(recipe, 24)(images)
    assert small.shape == (2, 3, 24, 24)
    torch.testing.assert_close(small.mean(), whole.mean(), rtol=0.02, atol=0.02)


# Optimizers ---------------------------------------------------------------------------------------


def some_params() -> Params:
    """One of each group, by their names in speednet."""
    shapes = {
        "whiten.bias": (4,),
        "groups.0.convs.0.weight": (4, 3, 2, 2),
        "groups.0.norms.0.bias": (4,),
        "head.weight": (3, 4),
    }
    keys = random.split(random.key(0), len(shapes))
    return {
        name: random.normal(key, shape).double()
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }


def path_of(optimizer: Optimizer, steps: int, params: Params | None = None) -> list[Params]:
    """Parameters before and after each of some steps, by gradients that are different each time."""
    params = params or some_params()
    state, path = optimizer.init(params), [params]
    for i in range(steps):
        grads = {name: torch.cos(p + i) for name, p in params.items()}
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize("name", models.MODELS)
def test_every_parameter_has_its_group(name: str) -> None:
    by_group: dict[str, set[str]] = {}
    for path, value in make_model(name).init(random.key(0)).params.items():
        by_group.setdefault(group_of(path, value), set()).add(path)
        ndim = {"kernel": 4, "linear": 2, "vector": 1}.get(group_of(path, value), value.ndim)
        is_embedding = path in ("cls_token", "pos_embed")
        assert value.ndim == (3 if is_embedding else ndim)
    assert set(by_group) == {"kernel", "linear", "vector"} | (
        {"whiten"} if name == "speednet" else set()
    )
    if name == "speednet":
        assert by_group["whiten"] == {"whiten.bias"}
        assert by_group["linear"] == {"head.weight"}
    value = torch.zeros(24, 3, 2, 2)
    assert group_of("whiten.weight", value) == "whiten", "one that is trained, too"


MUON = recipe_of(
    model="speednet",
    model_options={"widths": (4,)},
    optimizer="muon",
    learning_rate=0.2,
    momentum=0.7,
    group_learning_rates={"vector": 0.05, "whiten": 0.04, "linear": 0.6},
    group_momentum=0.8,
    weight_decay=0.01,
    schedule="linear",
    epochs=2,
)


@pytest.mark.parametrize("whiten_epochs", [0.0, 0.5, 5.0])
def test_a_recipe_with_muon_gives_each_group_its_own(whiten_epochs: float) -> None:
    """Kernels get Muon; others Nesterov's momentum, with learning rate x weight decay alike."""
    total = 8
    recipe = MUON.replace(whiten_epochs=whiten_epochs)
    found = path_of(recipes.make_optimizer(recipe, total), total)

    def falling(peak: float, steps: int = total) -> schedules.Schedule:
        return schedules.linear_schedule(peak, 0.0, steps)

    def others(peak: float, schedule: schedules.Schedule) -> Optimizer:
        decay = 0.2 * 0.01 / peak
        assert peak * decay == pytest.approx(recipe.learning_rate * recipe.weight_decay)
        return optim.chain(
            optim.add_decayed_weights(decay), optim.sgd(schedule, 0.8, nesterov=True)
        )

    steps = math.ceil(total * whiten_epochs / 2) if whiten_epochs else total
    expected = {
        "groups.0.convs.0.weight": optim.muon(falling(0.2), 0.7, renormalize=True),
        "groups.0.norms.0.bias": others(0.05, falling(0.05)),
        "head.weight": others(0.6, falling(0.6)),
        "whiten.bias": others(0.04, falling(0.04, steps)),
    }
    for name, optimizer in expected.items():
        alone = path_of(optimizer, total, {name: some_params()[name]})
        for i in range(total + 1):
            at = min(i, steps) if name == "whiten.bias" else i
            torch.testing.assert_close(found[i][name], alone[at][name], rtol=1e-9, atol=1e-12)


def test_the_whitening_layer_comes_to_rest_and_stays_there() -> None:
    """After a fraction of an epoch too, rounded up to a step; weight decay does not move it."""
    for recipe in (MUON, recipe_of(momentum=0.9, weight_decay=0.1, learning_rate=0.1)):
        path = path_of(recipes.make_optimizer(recipe.replace(whiten_epochs=0.6), 10), 10)
        for i in range(10):
            moved = not torch.equal(path[i]["whiten.bias"], path[i + 1]["whiten.bias"])
            assert moved == (i < math.ceil(10 * 0.6 / 2)), i
            other = "groups.0.norms.0.bias"
            assert not torch.equal(path[i][other], path[i + 1][other])


def test_groups_of_sgd_differ_in_their_rates_alone() -> None:
    recipe = recipe_of(
        learning_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=0.02,
        group_learning_rates={"vector": 0.4},
    )
    found = path_of(recipes.make_optimizer(recipe, 5), 5)
    for name, rate in (("head.weight", 0.1), ("groups.0.norms.0.bias", 0.4), ("whiten.bias", 0.1)):
        twin = torch.nn.Parameter(some_params()[name].clone())
        theirs = torch.optim.SGD(
            [twin], rate, momentum=0.9, nesterov=True, weight_decay=0.1 * 0.02 / rate
        )
        for i in range(5):
            twin.grad = torch.cos(twin.detach() + i)
            theirs.step()
            torch.testing.assert_close(found[i + 1][name], twin.detach(), rtol=1e-12, atol=1e-12)


def test_gradients_are_clipped_by_their_norm_over_all_groups() -> None:
    recipe = MUON.replace(clip_norm=0.01, weight_decay=0.0)
    start, after = path_of(recipes.make_optimizer(recipe, 100), 1)
    grads = tree.map(torch.cos, start)
    share = 0.01 / float(tree.norm(grads))
    expected = start["head.weight"] - 0.6 * 1.8 * share * grads["head.weight"]
    torch.testing.assert_close(after["head.weight"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_learning_rate_of_nothing_moves_nothing(optimizer: str, schedule: str) -> None:
    recipe = recipe_of(
        optimizer=optimizer,
        schedule=schedule,
        learning_rate=0,
        weight_decay=0.1,
        whiten_epochs=1e30,
        final_rate=0.1,
    )
    start, *_, end = path_of(recipes.make_optimizer(recipe, 10), 3)
    moved = [name for name in start if not torch.equal(start[name], end[name])]
    assert moved == (["groups.0.convs.0.weight"] if optimizer == "muon" else []), "its norm alone"


@pytest.mark.parametrize("whiten_epochs", [1e-30, 1e30])
def test_a_whitening_layer_may_rest_at_once_or_never(whiten_epochs: float) -> None:
    recipe = recipe_of(whiten_epochs=whiten_epochs, learning_rate=0.1)
    path = path_of(recipes.make_optimizer(recipe, 2**60), 3)
    moved = [
        not torch.equal(a["whiten.bias"], b["whiten.bias"]) for a, b in itertools.pairwise(path)
    ]
    assert moved == ([True, False, False] if whiten_epochs < 1 else [True] * 3)


# Schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ({"schedule": "linear"}, {0: 2.0, 50: 1.0, 100: 0.0}),
        ({"schedule": "linear", "final_rate": 0.25}, {0: 2.0, 50: 1.25, 100: 0.5}),
        ({"schedule": "cosine", "final_rate": 0.25}, {0: 2.0, 50: 1.25, 100: 0.5}),
        (
            {"schedule": "linear", "warmup_fraction": 0.2, "initial_rate": 0.1, "final_rate": 0.5},
            {0: 0.2, 10: 1.1, 20: 2.0, 60: 1.5, 100: 1.0},
        ),
        (
            {"schedule": "cosine", "warmup_fraction": 0.2, "initial_rate": 0.5},
            {0: 1.0, 10: 1.5, 20: 2.0, 60: 1.0, 100: 0.0},
        ),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.0, 2: 1.0, 4: 2.0, 100: 2.0}),
        ({"schedule": "linear", "warmup_steps": 50}, {0: 0.0, 25: 1.0, 50: 2.0, 75: 1.0}),
        (
            {"schedule": "multistep", "milestones": (0.5, 0.75)},
            {0: 2.0, 49: 2.0, 50: 0.2, 74: 0.2, 75: 0.02, 100: 0.02},
        ),
        (
            {
                "schedule": "multistep",
                "milestones": (0.3, 0.301, 0.6),
                "milestone_factor": 0.5,
                "warmup_fraction": 0.2,
                "initial_rate": 0.1,
            },
            {0: 0.2, 10: 1.1, 20: 2.0, 29: 2.0, 30: 0.5, 59: 0.5, 60: 0.25, 100: 0.25},
        ),
        (
            {"schedule": "multistep", "milestones": (0.1, 0.5), "warmup_steps": 20},
            {0: 0.0, 10: 1.0, 20: 0.2, 49: 0.2, 50: 0.02},
        ),
    ],
)
def test_schedules_pass_through_their_points(
    values: dict[str, Any], points: dict[int, float]
) -> None:
    rate = recipes.make_schedule(recipe_of(learning_rate=2.0, **values), 100)
    assert not isinstance(rate, float)
    for step, value in points.items():
        assert float(rate(torch.tensor(float(step)))) == pytest.approx(value, abs=1e-6), step


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    recipe = recipe_of(schedule="linear", warmup_fraction=0.99)
    with pytest.raises(UsageError, match="but the run has only 10 steps; warm up for fewer"):
        recipes.make_schedule(recipe, 10)
    assert not isinstance(recipes.make_schedule(recipe, 1000), float)


# Averages, losses, views --------------------------------------------------------------------------


def test_a_lookahead_grows_with_the_cube_of_the_time() -> None:
    average = recipes.make_average(recipe_of(lookahead_every=2, lookahead_decay=0.9), 4)
    fast, state = torch.zeros((), dtype=torch.float64), None
    state = average.init(fast)
    seen = []
    for _ in range(4):
        fast, state = average.update(fast + 1, state)
        seen.append(float(fast))
    first = 2 * (1 - 0.9**2 * 0.5**3)
    second = first * 0.9**2 + (first + 2) * (1 - 0.9**2)
    assert seen == pytest.approx([1, first, first + 1, second], rel=1e-9)
    assert float(average.value(fast, state)) == pytest.approx(second, rel=1e-9)


def test_an_ema_leaves_training_alone() -> None:
    average = recipes.make_average(recipe_of(ema_decay=0.75), 100)
    fast = torch.zeros(())
    fast, state = average.update(fast + 1, average.init(fast))
    assert (float(fast), float(average.value(fast, state))) == (1, 0.25)


def test_swa_begins_with_the_first_epoch_that_ends_late_enough() -> None:
    """Three steps an epoch; half of five epochs end within the third."""
    average = recipes.make_average(recipe_of(swa_start=0.5, epochs=5), 15)
    fast = torch.zeros((), dtype=torch.float64)
    state, seen = average.init(fast), []
    for _ in range(15):
        fast, state = average.update(fast + 1, state)
        seen.append(float(average.value(fast, state)))
    assert seen[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert seen[9:] == [9, 9, 10.5, 10.5, 10.5, 12]


def test_without_an_average_there_is_no_state() -> None:
    assert recipes.make_average(recipe_of(), 100).init(torch.zeros(())) == ()


def test_losses_reductions_and_views_are_those_named() -> None:
    logits, labels = random.normal(random.key(0), (5, 10)), torch.arange(5)
    for smoothing in (0.0, 0.2):
        twin = torch.nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=smoothing
        )
        found = recipes.make_loss(recipe_of(label_smoothing=smoothing))(logits, labels)
        torch.testing.assert_close(found, twin)
    assert float(recipes.make_reduction(recipe_of())(torch.ones(4))) == 1
    assert float(recipes.make_reduction(recipe_of(loss_reduction="sum"))(torch.ones(4))) == 4
    for name, views in tta.VIEWS.items():
        assert recipes.make_views(recipe_of(tta=name)) is views


# Together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["speed94", "speed95"])
def test_a_step_of_a_record_moves_what_it_should(name: str, make_batch) -> None:
    recipe = make_recipe(name)
    model = recipes.make_model(recipe, 10)
    optimizer = recipes.make_optimizer(recipe, 20)
    preprocess = recipes.make_preprocess(recipe, 24)
    average = recipes.make_average(recipe, 20)
    sample = recipes.make_preprocess(recipe)(make_batch(40).images)
    state = init_train_state(model, optimizer, key=random.key(0), average=average, sample=sample)
    step = make_train_step(
        model,
        optimizer,
        loss=recipes.make_loss(recipe),
        augment=recipes.make_augment(recipe),
        preprocess=preprocess,
        policy=precision.BF16,
        reduction=recipes.make_reduction(recipe),
        average=average,
    )
    path = [state]
    for i in range(20):
        path.append(step(path[-1], make_batch(16, seed=i))[0])
    rest = math.ceil(20 * recipe.whiten_epochs / recipe.epochs)

    def moves(name: str, i: int) -> bool:
        a, b = (x.variables.params[name] for x in path[i : i + 2])
        return not torch.equal(a, b)

    for parameter in state.variables.params:
        for i in range(20):
            frozen = parameter == "whiten.bias" and i >= rest
            warming = recipe.warmup_fraction and not recipe.initial_rate and i == 0
            drawn_back = recipe.lookahead_every and (i + 1) % recipe.lookahead_every == 0
            if not drawn_back and not warming:
                assert moves(parameter, i) != frozen, (parameter, i)
    kernels: list[Tensor] = [p for p in path[-1].variables.params.values() if p.ndim == 4]
    if recipe.optimizer == "muon":  # whose norm is fixed before the last update, of about 0
        for kernel in kernels:
            assert float(kernel.norm()) == pytest.approx(math.sqrt(len(kernel)), rel=0.1)
    whitening = (x.variables.buffers["whiten.weight"] for x in (path[0], path[-1]))
    assert torch.equal(*whitening)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_learning_rate_factors_scale_the_updates_of_their_parameters(optimizer: str) -> None:
    """The first pattern that matches counts; the others keep the learning rate."""
    momentum = 0.9 if optimizer == "sgd" else 0.0
    recipe = recipes.get("blitz").replace(
        optimizer=optimizer, momentum=momentum, weight_decay=0.1, learning_rate_factors={}
    )
    factors = {"fc3.*": 10.0, "fc*": 0.5}
    params = recipes.make_model(recipe, 10).init(random.key(0)).params
    grads = {name: random.normal(random.key(1), value.shape) for name, value in params.items()}
    plain = recipes.make_optimizer(recipe, 10)
    scaled = recipes.make_optimizer(recipe.replace(learning_rate_factors=factors), 10)
    expected, _ = plain.update(grads, plain.init(params), params)
    found, _ = scaled.update(grads, scaled.init(params), params)
    for name, value in expected.items():
        factor = 10.0 if name.startswith("fc3") else 0.5 if name.startswith("fc") else 1.0
        assert torch.equal(found[name], factor * value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate_factors": {"fc9*": 2.0}}, "has 'fc9.', which matches no parameter"),
        ({"learning_rate_factors": {"fc*": 0.0}}, "is 0; it must be above, or give freeze"),
        ({"learning_rate_factors": 2.0}, "it must be numbers by pattern"),
        (
            {"learning_rate_factors": {"fc*": 2.0}, "freeze": ("fc*",)},
            "has 'fc.', which matches no parameter",
        ),
        (
            {"learning_rate_factors": {"fc*": 2.0}, "optimizer": "muon", "momentum": 0.6},
            "does not fit the optimizer muon",
        ),
        ({"freeze": "conv*"}, "freeze is 'conv.'; it must be names such as conv"),
    ],
)
def test_factors_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipes.get("blitz").replace(**changes)
