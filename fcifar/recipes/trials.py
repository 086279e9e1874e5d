"""The trials of a sweep: each point of a grid over a recipe, with each seed."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fcifar import random
from fcifar.errors import UsageError
from fcifar.recipes.build import Hyperparams, make_model
from fcifar.recipes.checks import check_seed, refused
from fcifar.recipes.recipe import Recipe, from_dict, to_dict

LARGEST = 10_000  # trials
METHODS = ("loop", "vmap")  # one after another, or at once
_SMALL = 10**6  # parameters
NAME = re.compile(r"\w[\w.=,+-]{0,100}", re.ASCII)  # names of folders that any system takes


class Trial(NamedTuple):
    """One run of a sweep."""

    name: str  # and its directory
    recipe: Recipe
    seed: int
    changes: dict[str, Any]  # swept values by name


class CompileGroup(NamedTuple):
    """Trials that share one compiled step."""

    trials: tuple[Trial, ...]
    traced_hparams: tuple[str, ...]  # the hyperparameters that differ among them


def make_trials(
    recipe: Recipe, grid: Mapping[str, Sequence[tuple[Any, Recipe]]], seeds: Sequence[int]
) -> tuple[Trial, ...]:
    """Return the trials of a sweep: each point of the grid with each seed.

    Args:
        recipe: the common settings.
        grid: an axis by name: its values, and the recipe changed to each.
        seeds: one or more.

    Raises:
        UsageError: there are too many trials, or a seed is out of range.
    """
    points = list(itertools.product(*grid.values()))
    if not 1 <= len(points) * len(seeds) <= LARGEST:
        raise UsageError(
            f"{len(points)} grid points with {len(seeds)} seeds are {len(points) * len(seeds):,} "
            f"runs; a group has at most {LARGEST:,}"
        )
    check_seed(seeds[-1])
    trials = []
    for number, point in enumerate(points):
        changes = {name: value for name, (value, _) in zip(grid, point, strict=True)}
        own = _merge(recipe, [changed for _, changed in point])
        for seed in seeds:
            name = _name(changes, number, seed if len(seeds) > 1 or not grid else None)
            trials.append(Trial(name, own, seed, changes))
    return tuple(trials)


def _merge(recipe: Recipe, changed: Sequence[Recipe]) -> Recipe:
    """Return the recipe with the differences of each of ``changed`` from it."""
    base = to_dict(recipe)
    values = dict(base)
    for other in map(to_dict, changed):
        values |= {name: value for name, value in other.items() if value != base[name]}
        own, theirs = values["model_options"], other["model_options"]
        differing = {k: v for k, v in theirs.items() if base["model_options"].get(k) != v}
        values["model_options"] = {**base["model_options"], **own, **differing}
    return from_dict(values)


def _name(changes: Mapping[str, Any], number: int, seed: int | None) -> str:
    text = ",".join(f"{name}={value}" for name, value in changes.items())
    text = text.replace("/", "of")  # of a fold, such as 2/5
    if text and not NAME.fullmatch(text):
        text = f"cell{number:03}"  # the value cannot name a folder
    return "-".join(part for part in (text, "" if seed is None else f"seed{seed}") if part)


def compile_groups(trials: Sequence[Trial]) -> Iterator[CompileGroup]:
    """Group trials that share a compiled step: they differ in seeds and ``Hyperparams`` alone."""
    fields = Hyperparams._fields
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        values = to_dict(trial.recipe)
        shared = json.dumps({k: v for k, v in values.items() if k not in fields})
        groups.setdefault(shared, []).append(trial)
    for group in groups.values():
        differing = [n for n in fields if len({getattr(t.recipe, n) for t in group}) > 1]
        yield CompileGroup(tuple(group), tuple(differing))


def choose_method(method: str, recipe: Recipe, device: str) -> str:
    """Return ``loop`` or ``vmap``; for ``auto``, the one that is likely to be faster.

    On a GPU small models are bound by kernel launches, which ``vmap`` shares among all replicas;
    large ones are bound by arithmetic. On the CPU, convolutions with different weights for each
    replica are slow: docs/many-at-once.md.

    Raises:
        UsageError: there is no such method.
    """
    if method in METHODS:
        return method
    if method != "auto":
        raise refused("--replica-method", method, "auto, loop or vmap")
    if not device.startswith("cuda"):
        return "loop"
    params = make_model(recipe, 10).init(random.key(0)).params
    return "vmap" if sum(value.numel() for value in params.values()) <= _SMALL else "loop"
