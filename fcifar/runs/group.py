"""A group: runs trained together, as replicas of a recipe and as the cells of a sweep.

group.json      what was asked: the members, the method, runtime and data set
NAME/           the run directory of each member, like any other
summary.json    the result
plots/          pictures of it
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import random, recipes
from fcifar.errors import UserError, shown
from fcifar.recipes import Recipe
from fcifar.runs import directory, jsonfiles
from fcifar.runs.runtime import Runtime
from fcifar.runs.safeguards import Safeguards

FILE = "group.json"
SUMMARY = "summary.json"
FORMAT = 1

METHODS = ("loop", "vmap")
LARGEST_GROUP = 10_000  # members
_SMALL = 10**6  # parameters
_NAME = re.compile(r"\w[\w.=,+-]{0,100}", re.ASCII)  # of a folder on any system


class Member(NamedTuple):
    """One run of a group."""

    name: str  # of its directory
    recipe: Recipe
    seed: int
    changes: dict[str, Any]  # what is swept, and its value here


class Group(NamedTuple):
    """What was asked of a group of runs."""

    members: tuple[Member, ...]
    method: str  # one of METHODS
    runtime: Runtime  # with the first seed
    compiled: bool
    dataset_name: str
    dataset_digest: str
    safeguards: Safeguards


class Part(NamedTuple):
    """Members that share one compiled step."""

    members: tuple[Member, ...]
    traced: tuple[str, ...]  # the numbers of the recipe that differ among them


def plan(
    recipe: Recipe, sweep: Mapping[str, Sequence[tuple[Any, Recipe]]], seeds: Sequence[int]
) -> tuple[Member, ...]:
    """The members of a group: each cell of the grid with each seed.

    Args:
        recipe: what all have in common.
        sweep: by name, the values and the recipe changed to each: one axis of the grid.
        seeds: one or more.

    Raises:
        UserError: there are too many.
    """
    cells = list(itertools.product(*sweep.values()))
    if not 1 <= len(cells) * len(seeds) <= LARGEST_GROUP:
        raise UserError(
            f"{len(cells)} cells with {len(seeds)} seeds are {len(cells) * len(seeds):,} runs; "
            f"a group has at most {LARGEST_GROUP:,}"
        )
    members = []
    for number, cell in enumerate(cells):
        changes = {name: value for name, (value, _) in zip(sweep, cell, strict=True)}
        own = _merge(recipe, [changed for _, changed in cell])
        for seed in seeds:
            name = _name(changes, number, seed if len(seeds) > 1 or not sweep else None)
            members.append(Member(name, own, seed, changes))
    return tuple(members)


def _merge(recipe: Recipe, changed: Sequence[Recipe]) -> Recipe:
    """The recipe with what is different in each of ``changed``."""
    base = recipes.to_dict(recipe)
    values = dict(base)
    for other in map(recipes.to_dict, changed):
        values |= {name: value for name, value in other.items() if value != base[name]}
        own, theirs = values["model_options"], other["model_options"]
        differing = {k: v for k, v in theirs.items() if base["model_options"].get(k) != v}
        values["model_options"] = {**base["model_options"], **own, **differing}
    return recipes.from_dict(values)


def _name(changes: Mapping[str, Any], number: int, seed: int | None) -> str:
    text = ",".join(f"{name}={value}" for name, value in changes.items())
    if text and not _NAME.fullmatch(text):
        text = f"cell{number:03}"  # a value that is no name for a folder
    return "-".join(part for part in (text, "" if seed is None else f"seed{seed}") if part)


def parts(members: Sequence[Member]) -> Iterator[Part]:
    """The members by the step that they can share, in their order.

    Runs share a step where they differ in seeds and in ``recipes.Numbers`` alone.
    """

    def shared(member: Member) -> str:
        values = recipes.to_dict(member.recipe)
        return json.dumps({k: v for k, v in values.items() if k not in recipes.Numbers._fields})

    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(shared(member), []).append(member)
    for together in found.values():
        differing = [
            name
            for name in recipes.Numbers._fields
            if len({getattr(member.recipe, name) for member in together}) > 1
        ]
        yield Part(tuple(together), tuple(differing))


def share(part: Part, members: Sequence[Member], number: int, processes: int) -> Part:
    """What one of several processes trains of a part.

    Args:
        members: of the whole group, which the processes take in turn.
        number: of the process, from 0.
    """
    own = {member.name for member in members[number::processes]}
    return part._replace(members=tuple(m for m in part.members if m.name in own))


def choose_method(asked: str, recipe: Recipe, device: str) -> str:
    """``loop`` or ``vmap``; for ``auto``, what is likely to be faster.

    On a GPU small networks are bound by launching kernels, and ``vmap`` launches them for all
    replicas at once; large ones are bound by arithmetic, of which there is no less. On the CPU,
    convolutions with weights of their own for each replica are slow: docs/many-at-once.md.

    Raises:
        UserError: there is no such method.
    """
    if asked == "auto":
        return "vmap" if device.startswith("cuda") and _is_small(recipe) else "loop"
    if asked not in METHODS:
        raise UserError(f"--replica-method is {shown(asked)}; it must be auto, loop or vmap")
    return asked


def _is_small(recipe: Recipe) -> bool:
    params = recipes.make_model(recipe, 10).init(random.key(0)).params
    return sum(value.numel() for value in params.values()) <= _SMALL


def is_group(path: Path) -> bool:
    """Whether there is a group at ``path``."""
    return (path / FILE).is_file()


def write(path: Path, group: Group, about: Mapping[str, Any]) -> None:
    """Make the directory of a group; ``about`` is what else a reader may want to know."""
    jsonfiles.write_sealed(
        path / FILE,
        {
            "format": FORMAT,
            "members": [
                {**member._asdict(), "recipe": recipes.to_dict(member.recipe)}
                for member in group.members
            ],
            "method": group.method,
            "runtime": vars(group.runtime),
            "compile": group.compiled,
            "dataset": {"name": group.dataset_name, "digest": group.dataset_digest},
            "safeguards": vars(group.safeguards),
            **about,
        },
    )


def read(path: Path) -> Group:
    """What ``write`` was given.

    Raises:
        UserError: there is no group at ``path``, or another version's.
        WorldError: its file is damaged, or was changed.
    """
    if not is_group(path):
        raise UserError(f"{path} is not a group of runs: there is no {FILE} in it")
    values = jsonfiles.read_sealed(path / FILE)
    try:
        if values["format"] != FORMAT:
            raise UserError(f"{path / FILE} is not of format {FORMAT}, which this fcifar reads")
        for member in values["members"]:
            if not _NAME.fullmatch(member["name"]):
                raise UserError(f"{path / FILE}: {shown(member['name'])} is no name of a run")
        return Group(
            members=tuple(
                Member(m["name"], recipes.from_dict(m["recipe"]), m["seed"], m["changes"])
                for m in values["members"]
            ),
            method=values["method"],
            runtime=Runtime(**values["runtime"]),
            compiled=values["compile"],
            dataset_name=values["dataset"]["name"],
            dataset_digest=values["dataset"]["digest"],
            safeguards=Safeguards(**values["safeguards"]),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path / FILE} is not complete: {error!r}") from error


def expand(paths: Sequence[Path]) -> list[Path]:
    """The paths, with the finished members of a group in place of the group.

    Raises:
        UserError: no member of a group has come to its end.
    """
    return [run for path in paths for run in (finished(path) if is_group(path) else [path])]


def finished(path: Path) -> list[Path]:
    """The directories of the members that have come to their end. Raises as ``expand``."""
    runs = [path / member.name for member in read(path).members]
    ended = [run for run in runs if (run / directory.REPORT).exists()]
    if not ended:
        raise UserError(
            f"no run of {path} has come to its end; continue it with fcifar train --resume {path}"
        )
    return ended


def has_ended(run: Path, group: Group) -> bool:
    """Whether a member came to its end, or to a loss that is not finite."""
    failed = (run / directory.NONFINITE).exists() and not group.safeguards.allow_nonfinite
    return (run / directory.REPORT).exists() or failed


def read_summary(path: Path) -> dict[str, Any]:
    """The result of a group. Raises a WorldError where it is missing, damaged or changed."""
    return jsonfiles.read_sealed(path / SUMMARY)
