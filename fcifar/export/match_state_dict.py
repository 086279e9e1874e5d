"""Match named tensors with the names of a model.

Wrappers (``DataParallel``, ``torch.compile``, Lightning's ``self.model``) insert parts into names,
and a model may have children of the same names: a part is removed only where that gives the names
of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random, recipes
from fcifar.errors import UsageError, names_of, shown
from fcifar.export.state_dict import WRAPPERS, StateDict
from fcifar.models import MODELS, Model, Variables
from fcifar.recipes import Recipe

WRAPPING = ("module", "_orig_mod", "model", "net")  # children under which wrappers hold a model
_BETWEEN = ("module", "_orig_mod")  # those that may be inside of names
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of AveragedModel


def fit(
    found: Sequence[StateDict], recipe: Recipe, num_classes: int, source: str
) -> tuple[Variables, tuple[str, ...]]:
    """``match`` for the model of a recipe; errors also name models of ``MODELS`` that fit."""
    like = _initial(recipes.make_model(recipe, num_classes))
    try:
        return match(found, like, source)
    except MisfitError as error:
        raise UsageError(
            f"{source} does not fit {recipe.model} with {num_classes} classes: {error}; "
            + _advice(found, recipe.model, num_classes)
        ) from None


class MisfitError(UsageError):
    """Named tensors do not fit a model."""


def match(
    found: Sequence[StateDict], like: Variables, source: str
) -> tuple[Variables, tuple[str, ...]]:
    """Match the tensors of a file with the names and shapes of ``like``.

    Left out are a prefix of all names, and tensors without it; parts that wrappers insert into
    names; and counters of batches, which do not affect predictions. Missing counters are taken from
    ``like``.

    Args:
        found: state_dicts by likelihood, such as those of ``state_dict.read``.
        source: the name of the file in messages.

    Returns:
        Variables in the dtypes of ``like``, and notes about the changes.

    Raises:
        MisfitError: none fits; the message describes the mismatch of the closest.
        UsageError: several fit, and none has a usual key or prefix.
    """
    expected = {**like.params, **like.buffers}
    fitting = [(each, r) for each in found for r in _fitting(each.tensors, expected)]
    if not fitting:
        readings = [r for each in found for r in _readings(each.tensors, expected)]
        # The closest has the most names in common.
        closest = max(readings, key=lambda r: len(r.tensors.keys() & expected.keys()))
        raise MisfitError(_misfit(closest, expected))
    (chosen, reading), *others = sorted(fitting, key=_unusual)
    if others and _unusual(others[0]) == _unusual((chosen, reading)):
        paths = names_of([repr(_path(*each)) for each in ((chosen, reading), *others)])
        raise UsageError(
            f"{source} holds several models that fit, {paths}; save the state_dict of one alone"
        )
    values = {
        name: _converted(reading.tensors[name], leaf) if name in reading.tensors else leaf.clone()
        for name, leaf in expected.items()
    }
    variables = Variables(*({name: values[name] for name in part} for part in like))
    notes = _notes(chosen, reading, expected, source)
    if passed := [repr(_path(*each)) for each in others if each[0] is not chosen]:
        notes.append(f"passed over {names_of(passed)} of {source}, which fits too")
    return variables, tuple(notes)


class Initial(NamedTuple):
    """Values to begin training with."""

    values: dict[str, Tensor]  # by the names of the model
    drawn: tuple[str, ...]  # the other names of the model
    notes: tuple[str, ...]


def match_initial(
    found: Sequence[StateDict], recipe: Recipe, num_classes: int, source: str, *, partial: bool
) -> Initial:
    """Match the tensors of a file with a recipe's model, to begin training with them.

    Prefixes and wrappers are left out as by ``match``. The head, which is every parameter whose
    shape depends on the number of classes, may have another shape, and is then drawn.

    Args:
        found: state_dicts by likelihood.
        source: the name of the file in messages.
        partial: take what fits, and draw everything else.

    Raises:
        UsageError: other names or shapes differ, or with ``partial`` all; the message lists them.
    """
    like, other = (_initial(recipes.make_model(recipe, n)) for n in (num_classes, num_classes + 1))
    expected = {**like.params, **like.buffers}
    head = {n for n, v in {**other.params, **other.buffers}.items() if v.shape != expected[n].shape}
    readings = [(each, r) for each in found for r in _readings(each.tensors, expected)]

    def fits(reading: _Reading) -> list[str]:
        tensors = reading.tensors
        return [
            name
            for name, leaf in expected.items()
            if name in tensors
            and tensors[name].shape == leaf.shape
            and _kind(tensors[name]) == _kind(leaf)
        ]

    chosen, reading = max(
        readings, key=lambda pair: (len(fits(pair[1])), [-rank for rank in _unusual(pair)])
    )
    names = fits(reading)
    drawn = tuple(n for n in expected if n not in names)
    wrong = [
        f"{name} is {_shape(reading.tensors[name])} and not {_shape(expected[name])}"
        if name in reading.tensors
        else f"there is no {name} in it"
        for name in drawn
        if not _is_counter(name) and not (name in head and name in reading.tensors)
    ]
    others = [name for name in reading.tensors if name not in expected and not _is_counter(name)]
    wrong += [f"the model has no {shown(name)}" for name in others]
    if (wrong and not partial) or not names:
        how = "give the model and options that it was saved with"
        how += "" if partial or not names else ", or --init-partial to take what fits"
        raise UsageError(
            f"{source} does not fit {recipe.model} with {num_classes} classes: {names_of(wrong)}; "
            f"{how}"
        )
    values = {name: _converted(reading.tensors[name], expected[name]) for name in names}
    notes = _origin(chosen, source)
    if named := [name for name in drawn if not _is_counter(name)]:
        notes.append(f"drew {names_of(named)} anew, which {source} has not in these shapes")
    return Initial(values, drawn, tuple(notes))


def _shape(tensor: Tensor) -> str:
    return f"{_dtype(tensor)} {list(tensor.shape)}"


class _Reading(NamedTuple):
    """A way to read the names of a state_dict."""

    tensors: dict[str, Tensor]  # with the prefix, by the names without it
    prefix: str  # empty, or ends with a dot
    between: tuple[str, ...]  # parts that were removed inside of names
    beside: tuple[str, ...]  # names without the prefix


def _fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[_Reading]:
    """The readings that fit, with as few parts removed from names as possible."""
    fitting = [r for r in _readings(tensors, expected) if not _misfit(r, expected)]
    return [r for r in fitting if r.between == fitting[0].between]


def _readings(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[_Reading]:
    """Read the names unchanged and without each prefix of the longest of the model's names; then
    the same without the parts that wrappers insert.
    """
    for between in ((), *((part,) for part in _BETWEEN), _BETWEEN):
        named = {_without(name, between): value for name, value in tensors.items()}
        own = {_without(name, between): name for name in expected}
        if len(named) < len(tensors) or len(own) < len(expected):
            continue  # two names would become one
        if between and named.keys() == tensors.keys():
            continue  # no name has such a part
        longest = max(own, key=len, default="")
        for prefix in ["", *(n.removesuffix(longest) for n in named if n.endswith(f".{longest}"))]:
            under = {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
            yield _Reading(
                {own.get(name, name): value for name, value in under.items()},
                prefix,
                between,
                tuple(n for n in named if not n.startswith(prefix)),
            )


def _without(name: str, parts: Sequence[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)


def _unusual(candidate: tuple[StateDict, _Reading]) -> tuple[int, int, int]:
    """A rank by key, depth and prefix; lower values are more usual."""
    chosen, reading = candidate
    key = chosen.key.rpartition(".")[2]
    ranks = ("", *WRAPPERS)
    parts = reading.prefix.split(".")[:-1]
    return (
        ranks.index(key) if key in ranks else len(ranks),
        chosen.key.count("."),
        0 if not parts else 1 if all(part in WRAPPING for part in parts) else 2,
    )


def _path(chosen: StateDict, reading: _Reading) -> str:
    """Keys and prefix in a file."""
    return ".".join(filter(None, (chosen.key, reading.prefix.removesuffix("."))))


def _misfit(reading: _Reading, expected: Mapping[str, Tensor]) -> str:
    """Describe the first mismatch; empty if all tensors fit."""
    for name, leaf in expected.items():
        found = reading.tensors.get(name)
        if found is None:
            if not _is_counter(name):
                return f"there is no {shown(name)} in it"
        elif found.shape != leaf.shape:
            return f"{name} is {list(found.shape)}, not {list(leaf.shape)}"
        elif _kind(found) != _kind(leaf) and not _is_counter(name):
            return f"{name} holds {_dtype(found)}, not {_kind(leaf)}"
    for name in reading.tensors:
        if name not in expected and not _is_counter(name):
            return f"the model has no {shown(name)}"
    return ""


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex numbers"
    return "floating numbers" if tensor.is_floating_point() else "whole numbers"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _converted(found: Tensor, leaf: Tensor) -> Tensor:
    """A copy in the dtype of ``leaf``; a file may hold one tensor under two names."""
    if not leaf.is_floating_point() and found.is_floating_point():  # a counter saved as a float
        found = found.double().nan_to_num(posinf=0.0, neginf=0.0)
    return found.to(leaf.dtype, copy=True).contiguous(memory_format=torch.contiguous_format)


def _origin(chosen: StateDict, source: str) -> list[str]:
    return [f"took {chosen.key!r} out of the checkpoint {source}"] if chosen.key else []


def _notes(
    chosen: StateDict, reading: _Reading, expected: Mapping[str, Tensor], source: str
) -> list[str]:
    """Describe the changes to a state_dict."""
    notes = _origin(chosen, source)
    others = [name for name in reading.beside if "." in name or not _is_counter(name)]
    unused = {name.rpartition(".")[2] for name in reading.tensors if name not in expected}
    unused.update(name for name in reading.beside if name not in others)
    if counters := sorted(unused.intersection(COUNTERS)):
        names = " and ".join(counters)
        notes.append(f"left out {names} of {source}, on which no prediction depends")
    if missing := {n.rpartition(".")[2] for n in expected if n not in reading.tensors}:
        names = " and ".join(sorted(missing))
        notes.append(f"there is no {names} in {source}, on which no prediction depends")
    if reading.prefix:
        notes.append(f"left out {reading.prefix!r} before the names in {source}")
    for part in reading.between:
        notes.append(f"left out '{part}.' in the names in {source}")
    if others:
        names = names_of([shown(name) for name in others])
        notes.append(f"left out what is not under {reading.prefix!r} in {source}: {names}")
    conversions: dict[str, set[str]] = {}
    for name, leaf in expected.items():
        given = _dtype(reading.tensors.get(name, leaf))
        conversions.setdefault(_dtype(leaf), set()).add(given)
    for dtype, given in conversions.items():
        if others := sorted(given - {dtype}):
            notes.append(f"took {' and '.join(others)} values of {source} as {dtype}")
    return notes


def fitting_models(found: Sequence[StateDict], num_classes: int) -> Iterator[str]:
    """Yield the models of ``MODELS`` that the tensors fit, with their default options."""
    for name, make in MODELS.items():
        try:
            like = make(num_classes=num_classes).init(random.key(0, device="meta"))
        except Exception:  # a registered one that needs options, or is broken
            continue
        expected = {**like.params, **like.buffers}
        if any(_fitting(each.tensors, expected) for each in found):
            yield name


def _advice(found: Sequence[StateDict], model: str, num_classes: int) -> str:
    if fitting := list(fitting_models(found, num_classes)):
        return f"it fits --model {' and '.join(fitting)}"
    options, any_other = recipes.options_of(model)
    how = f"by --set ({', '.join(options)})" if options else "by --set"
    how = f"the options that it was saved with, {how}, or " if options or any_other else ""
    return f"no other model fits either; give {how}a data set with as many classes"


def _initial(model: Model) -> Variables:
    return model.init(random.key(0))
