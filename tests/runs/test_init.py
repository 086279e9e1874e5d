"""Runs that begin with pretrained values: resumed, reproduced and verified as others."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import models, random, recipes, tensor_files, tree
from fcifar.data import Dataset
from fcifar.errors import DamagedError
from fcifar.recipes import Recipe
from fcifar.recipes.trials import make_trials
from fcifar.runs import inference, reproduce
from fcifar.runs.verify import verify
from fcifar.train import loop, run_dir, sweep
from fcifar.train.checkpoint import load_init
from fcifar.train.config import CheckpointConfig, Init, RunConfig, read_config
from tests.helpers.training import after, records

OFTEN = CheckpointConfig(checkpoint_every="5")
HEAD = ("fc3.weight", "fc3.bias")


@pytest.fixture
def pretrained() -> dict[str, Tensor]:
    params = models.lenet().init(random.key(99)).params
    return {name: value for name, value in params.items() if name not in HEAD}


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    return recipe.replace(freeze=("conv*",))


@pytest.fixture
def config(config: RunConfig, pretrained: dict[str, Tensor]) -> RunConfig:
    init = Init(source="elsewhere.pth", digest=tree.digest(pretrained), drawn=HEAD)
    return config.replace(init=init, checkpoint=OFTEN)


def first_state(path: Path, config: RunConfig, dataset: Dataset, **options: Any) -> Tensor:
    """The convolutions, and the first row of a drawn weight, before the first step."""
    loop.train(path, config, dataset, stop=after(0), **options)
    tensors, _ = tensor_files.read(path / "checkpoint-00000000.safetensors")
    return {name.removeprefix("state.variables."): value for name, value in tensors.items()}


def test_a_run_begins_with_them_and_draws_the_rest(
    tmp_path: Path, config: RunConfig, dataset: Dataset, pretrained: dict[str, Tensor]
) -> None:
    plain = config.replace(init=None)
    with_init = first_state(tmp_path / "a", config, dataset, pretrained=pretrained)
    without = first_state(tmp_path / "b", plain, dataset)
    for name in (*pretrained, *HEAD):
        kind = "buffers" if name.startswith("conv") else "params"
        now, drawn = with_init[f"{kind}.{name}"], without[f"{kind}.{name}"]
        assert torch.equal(now, pretrained.get(name, drawn)), name
        assert torch.equal(now, drawn) == (name in HEAD), name
    assert read_config(tmp_path / "a").init == config.init


def test_frozen_values_are_in_the_model_at_the_end(
    tmp_path: Path, config: RunConfig, dataset: Dataset, pretrained: dict[str, Tensor]
) -> None:
    loop.train(tmp_path, config, dataset, pretrained=pretrained)
    values, _ = tensor_files.read(tmp_path / run_dir.FINAL)
    same = {name for name, value in pretrained.items() if torch.equal(values[name], value)}
    assert same == {name for name in pretrained if name.startswith("conv")}
    loaded = inference.load(tmp_path).variables
    assert loaded.buffers.keys() == same


def test_it_is_resumed_exactly_without_the_file_it_came_from(
    tmp_path: Path, config: RunConfig, dataset: Dataset, pretrained: dict[str, Tensor]
) -> None:
    loop.train(tmp_path / "whole", config, dataset, pretrained=pretrained)
    for steps in (0, 12):
        run = tmp_path / f"resumed{steps}"
        stopped = loop.train(run, config, dataset, pretrained=pretrained, stop=after(steps))
        assert isinstance(stopped, loop.Interrupted)
        loop.train(run, read_config(run), dataset, resume=True)
        assert records(run) == records(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_manifest_starts_again(
    tmp_path: Path, config: RunConfig, dataset: Dataset, pretrained: dict[str, Tensor]
) -> None:
    loop.train(tmp_path / "whole", config, dataset, pretrained=pretrained)
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / run_dir.INIT, tmp_path / "killed")
    loop.train(tmp_path / "killed", config, dataset, pretrained=pretrained)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_it_is_reproduced_and_verified(
    tmp_path: Path, config: RunConfig, dataset: Dataset, pretrained: dict[str, Tensor]
) -> None:
    loop.train(tmp_path, config, dataset, pretrained=pretrained)
    assert verify(tmp_path) == []
    result = reproduce.reproduce(reproduce.read(tmp_path), dataset)
    assert isinstance(result, dict)
    assert result["identical"]
    others = {name: value + 1 for name, value in pretrained.items()}
    tensor_files.save(tmp_path / run_dir.INIT, others, {})
    assert [line.startswith(f"{tmp_path / run_dir.INIT} ") for line in verify(tmp_path)] == [True]
    with pytest.raises(DamagedError, match="holds other values than the run began with"):
        load_init(tmp_path, config)
    (tmp_path / run_dir.INIT).unlink()
    assert "missing" in verify(tmp_path)[0]


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_every_run_of_a_sweep_begins_with_them(
    method: str,
    tmp_path: Path,
    config: RunConfig,
    dataset: Dataset,
    pretrained: dict[str, Tensor],
) -> None:
    config = config.replace(recipe=config.recipe.replace(epochs=1))
    trials = make_trials(config.recipe, {}, range(2))
    group = sweep.Sweep(trials, method, config)
    stopped = sweep.train(tmp_path, group, dataset, pretrained=pretrained, stop=after(5))
    assert isinstance(stopped, loop.Interrupted)
    sweep.train(tmp_path, sweep.read(tmp_path), dataset, resume=True)
    heads = []
    for trial in trials:
        values, _ = tensor_files.read(tmp_path / trial.name / run_dir.FINAL)
        assert torch.equal(values["conv1.weight"], pretrained["conv1.weight"])
        heads.append(values["fc3.weight"])
        assert load_init(tmp_path / trial.name, config).keys() == pretrained.keys()
    assert not torch.equal(*heads)
    assert verify(tmp_path) == []
    again = reproduce.reproduce_group(tmp_path, dataset)
    assert isinstance(again, dict)
    assert again["identical"]


EVERYTHING: dict[str, dict[str, Any]] = {
    "cutmix, ema, sam": {
        "model": "resnet18",
        "model_options": {"width": 4},
        "freeze": ("conv1.*", "bn1.*", "layer1.*"),
        "learning_rate_factors": {"fc.*": 10.0},
        "augment": ("rand_augment:2,9", "random_erasing:0.5", "cutmix:1"),
        "micro_batch": 3,
        "sam_rho": 0.05,
        "ema_decay": 0.9,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
    },
    "mixup, schedule-free": {
        "model": "lenet",
        "freeze": ("conv1.*",),
        "optimizer": "schedule_free_adamw",
        "momentum": 0.0,
        "augment": ("trivial_augment", "aug_mix", "mixup:0.2"),
        "micro_batch": 2,
        "warmup_steps": 3,
    },
    "swa, multistep": {
        "model": "resnet20",
        "model_options": {"width": 4},
        "augment": ("auto_augment",),
        "schedule": "multistep",
        "milestones": (0.5,),
        "micro_batch": 4,
        "swa_start": 0.5,
        "sam_rho": 0.05,
    },
}


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("mixup, schedule-free", False),
        *(
            pytest.param(name, False, marks=pytest.mark.slow)
            for name in ("cutmix, ema, sam", "swa, multistep")
        ),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in EVERYTHING),
    ],
)
def test_all_of_it_at_once_is_reproduced_and_resumed(
    name: str, compiled: bool, tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    recipe = config.recipe.replace(**{"freeze": (), **EVERYTHING[name]})
    model = recipes.make_model(recipe, 10)
    values = {n: v for part in model.init(random.key(7)) for n, v in part.items() if "fc" not in n}
    config = config.replace(
        recipe=recipe, init=Init(source="x", digest=tree.digest(values)), compile=compiled
    )
    loop.train(tmp_path / "whole", config, dataset, pretrained=values)
    result = reproduce.reproduce(reproduce.read(tmp_path / "whole"), dataset)
    assert isinstance(result, dict)
    assert result["identical"]
    assert verify(tmp_path / "whole") == []
    part = tmp_path / "part"
    loop.train(part, config, dataset, pretrained=values, stop=after(12))
    loop.train(part, read_config(part), dataset, resume=True)
    assert records(part) == records(tmp_path / "whole")
    final, _ = tensor_files.read(part / run_dir.FINAL)
    frozen = [n for n in values if any(n.startswith(p[:-1]) for p in recipe.freeze)]
    assert all(torch.equal(final[n], values[n]) for n in frozen)
    if recipe.average:
        average, _ = tensor_files.read(part / run_dir.AVERAGE)
        assert average.keys() == final.keys()
        assert all(torch.equal(average[n], values[n]) for n in frozen)
