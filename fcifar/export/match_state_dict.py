"""Whether named tensors are the values of a network, and of which.

The names of the network decide. Wrappers put parts before and between names (``DataParallel``,
``torch.compile``, Lightning's ``self.model``), and a network may have children of the same names:
a part is taken off where the names of the network are those without it, and nowhere else.
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

WRAPPING = ("module", "_orig_mod", "model", "net")  # children under which wrappers hold a network
_BETWEEN = ("module", "_orig_mod")  # of those, what wrappers of a part leave inside of names
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of AveragedModel


def fit(
    found: Sequence[StateDict], recipe: Recipe, num_classes: int, source: str
) -> tuple[Variables, tuple[str, ...]]:
    """The values of the recipe's network out of a file, and notes for a person.

    Args:
        found: what ``state_dicts.read`` gave.
        source: what messages call the file.

    Raises:
        UsageError: as ``match``; the message also says which networks of ``MODELS`` would fit.
    """
    like = _like(recipes.make_model(recipe, num_classes))
    try:
        return match(found, like, source)
    except MisfitError as error:
        raise UsageError(
            f"{source} does not fit {recipe.model} with {num_classes} classes: {error}; "
            + _advice(found, recipe.model, num_classes)
        ) from None


class MisfitError(UsageError):
    """Named tensors are not the values of a network."""


def match(
    found: Sequence[StateDict], like: Variables, source: str
) -> tuple[Variables, tuple[str, ...]]:
    """The tensors in a file with the names and shapes of ``like``, as values of its dtypes.

    Notes say what is left out: a prefix that all names of the network have in the file, and what
    does not stand under it; parts that wrappers put into names; and counters of batches, which no
    prediction depends on. Where the file has no counters, those of ``like`` are taken.

    Args:
        found: state_dicts, the likeliest first, such as those of ``state_dicts.read``.
        like: the names, shapes and dtypes of the network's variables.
        source: what notes call the file.

    Returns:
        Variables with memory of their own, and notes, a line each.

    Raises:
        MisfitError: none of them fits; the message says what is wrong with the closest.
        UsageError: several fit, and none of them stands where a network's values usually do.
    """
    expected = {**like.params, **like.buffers}
    fitting = [(each, r) for each in found for r in _fitting(each.tensors, expected)]
    if not fitting:
        readings = [r for each in found for r in _readings(each.tensors, expected)]
        # The closest has the most of the names; of equals, the first.
        closest = max(readings, key=lambda r: len(r.tensors.keys() & expected.keys()))
        raise MisfitError(_misfit(closest, expected))
    (chosen, reading), *others = sorted(fitting, key=_unusual)
    if others and _unusual(others[0]) == _unusual((chosen, reading)):
        places = names_of([repr(_place(*each)) for each in ((chosen, reading), *others)])
        raise UsageError(
            f"{source} holds several models that fit, {places}; save the state_dict of one alone"
        )
    values = {
        name: _converted(reading.tensors[name], leaf) if name in reading.tensors else leaf.clone()
        for name, leaf in expected.items()
    }
    variables = Variables(*({name: values[name] for name in part} for part in like))
    notes = _notes(chosen, reading, expected, source)
    if passed := [_place(*each) for each in others if each[0] is not chosen]:
        notes = (
            *notes,
            f"passed over {names_of(list(map(repr, passed)))} of {source}, which fits too",
        )
    return variables, notes


class _Reading(NamedTuple):
    """A way to read the names of a state_dict."""

    tensors: dict[str, Tensor]  # under the prefix, by the names that are read
    prefix: str  # "" or parts that each end with a dot
    between: tuple[str, ...]  # parts that were taken out of the inside of names
    beside: tuple[str, ...]  # names in the file that the prefix is not of


def _fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[_Reading]:
    """The readings that fit, with as little taken out of names as there can be."""
    fitting = [r for r in _readings(tensors, expected) if not _misfit(r, expected)]
    return [r for r in fitting if r.between == fitting[0].between]


def _readings(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[_Reading]:
    """As it stands, and under each prefix that the longest of the network's names has in the file;
    then the same without the parts that wrappers leave inside of names.
    """
    for between in ((), *((part,) for part in _BETWEEN), _BETWEEN):
        named = {_without(name, between): value for name, value in tensors.items()}
        wanted = {_without(name, between): name for name in expected}
        if len(named) < len(tensors) or len(wanted) < len(expected):
            continue  # two names would be one
        if between and named.keys() == tensors.keys():
            continue  # there is nothing of that kind
        longest = max(wanted, key=len, default="")
        for prefix in ["", *(n.removesuffix(longest) for n in named if n.endswith(f".{longest}"))]:
            under = {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
            yield _Reading(
                {wanted.get(name, name): value for name, value in under.items()},
                prefix,
                between,
                tuple(n for n in named if not n.startswith(prefix)),
            )


def _without(name: str, parts: Sequence[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)


def _unusual(place: tuple[StateDict, _Reading]) -> tuple[int, int, int]:
    """How far it is from where a network's values are: the least is taken, if it is alone."""
    chosen, reading = place
    key = chosen.key.rpartition(".")[2]
    ranks = ("", *WRAPPERS)
    parts = reading.prefix.split(".")[:-1]
    return (
        ranks.index(key) if key in ranks else len(ranks),
        chosen.key.count("."),
        0 if not parts else 1 if all(part in WRAPPING for part in parts) else 2,
    )


def _place(chosen: StateDict, reading: _Reading) -> str:
    """Where in a file it is: keys and prefix."""
    return ".".join(filter(None, (chosen.key, reading.prefix.removesuffix("."))))


def _misfit(reading: _Reading, expected: Mapping[str, Tensor]) -> str:
    """What is wrong with the first name that does not fit, or is too much; "" if all fit."""
    for name, leaf in expected.items():
        if name in reading.tensors:
            if problem := _difference(name, reading.tensors[name], leaf):
                return problem
        elif not _is_counter(name):
            return f"there is no {shown(name)} in it"
    return next(
        (
            f"the model has no {shown(name)}"
            for name in reading.tensors
            if name not in expected and not _is_counter(name)
        ),
        "",
    )


def _difference(name: str, found: Tensor, leaf: Tensor) -> str:
    """What keeps a tensor from being the value of a leaf; "" if nothing does."""
    if found.shape != leaf.shape:
        return f"{name} is {list(found.shape)}, not {list(leaf.shape)}"
    if found.dtype == leaf.dtype or _is_counter(name):
        return ""
    if _kind(found) != _kind(leaf):
        return f"{name} holds {_dtype(found)}, not {_kind(leaf)}"
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
    """A copy in the dtype of ``leaf``, for a file may hold one tensor under two names."""
    if not leaf.is_floating_point() and found.is_floating_point():  # a counter saved as a float
        found = found.double().nan_to_num(posinf=0.0, neginf=0.0)
    return found.to(leaf.dtype, copy=True).contiguous(memory_format=torch.contiguous_format)


def _notes(
    chosen: StateDict, reading: _Reading, expected: Mapping[str, Tensor], source: str
) -> tuple[str, ...]:
    """What was done to get at the values, a line each."""
    notes = []
    if chosen.key:
        notes.append(f"took {chosen.key!r} out of the checkpoint {source}")
    others = [name for name in reading.beside if "." in name or not _is_counter(name)]
    unused = {name.rpartition(".")[2] for name in reading.tensors if name not in expected}
    unused.update(name for name in reading.beside if name not in others)
    if counters := sorted(unused.intersection(COUNTERS)):
        what = " and ".join(counters)
        notes.append(f"left out {what} of {source}, on which no prediction depends")
    if missing := [name for name in expected if name not in reading.tensors]:
        what = " and ".join(sorted({name.rpartition(".")[2] for name in missing}))
        notes.append(f"there is no {what} in {source}, on which no prediction depends")
    if reading.prefix:
        notes.append(f"left out {reading.prefix!r} before the names in {source}")
    for part in reading.between:
        notes.append(f"left out '{part}.' in the names in {source}")
    if others:
        names = names_of([shown(name) for name in others])
        notes.append(f"left out what is not under {reading.prefix!r} in {source}: {names}")
    for wanted in dict.fromkeys(_dtype(leaf) for leaf in expected.values()):
        converted = {
            _dtype(reading.tensors[name])
            for name, leaf in expected.items()
            if name in reading.tensors and _dtype(leaf) == wanted
        } - {wanted}
        if converted:
            notes.append(f"took {' and '.join(sorted(converted))} values of {source} as {wanted}")
    return tuple(notes)


def fitting_models(found: Sequence[StateDict], num_classes: int) -> Iterator[str]:
    """The names of the networks that the tensors are values of, with their default options."""
    for name, make in MODELS.items():
        try:
            like = _like(make(num_classes=num_classes))
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


def _like(model: Model) -> Variables:
    """Values with the names and shapes of the network's."""
    return model.init(random.key(0))
