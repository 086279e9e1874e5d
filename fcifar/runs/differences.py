"""Two runs compared bit for bit: their log points, their tensors, their environments."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fcifar import tree
from fcifar.runs.runtime import Runtime

_WALL_CLOCK = "seconds"  # the one thing in a log that may differ

# What a result's bits depend on; the rest of an environment is there for a person.
_MATTERS = (
    "torch",
    "code",
    "model_code",
    "cpu",
    "cpu_capability",
    "libc",
    "torch_build",
    "cuda",
    "cudnn",
)

_SET_BY_RUNTIME = ("$OMP_NUM_THREADS", "$MKL_NUM_THREADS")


class Change(NamedTuple):
    """Something in the environment that is not as it was."""

    name: str
    then: Any
    now: Any
    matters: bool  # whether bits may depend on it


def compare_environments(
    then: Mapping[str, Any], now: Mapping[str, Any], runtime: Runtime, *, compiled: bool
) -> list[Change]:
    """What changed between two of ``environment.describe``, what matters first.

    Args:
        runtime: of the run, which sets threads and switches by itself.
        compiled: whether the C++ compiler matters.
    """
    a, b = (_flat(values, runtime.device) for values in (then, now))
    matters = {*_MATTERS, "device", *(["compiler", "kernels"] if compiled else [])}
    matters |= {name for name in (*a, *b) if name.startswith("$") and name not in _SET_BY_RUNTIME}
    changes = [
        Change(name, a.get(name), b.get(name), name in matters)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
    return sorted(changes, key=lambda change: not change.matters)


def _flat(values: Mapping[str, Any], device: str) -> dict[str, Any]:
    skipped = ("versions", "variables", "devices", "switches", "threads")
    devices = [name for name in values.get("devices", ()) if name.split(" ")[0] == device]
    return {
        **{name: value for name, value in values.items() if name not in skipped},
        **values.get("versions", {}),
        **{f"${name}": value for name, value in values.get("variables", {}).items()},
        "device": devices[0] if devices else None,
    }


def compare_records(
    then: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """How one log point differs from another, as values that JSON holds; None for not at all.

    ``what`` names each figure with both values and their difference; ``tensors`` names, in the
    order of the state, the tensors whose digests differ.
    """
    if then is None or now is None:
        present = now if then is None else then
        assert present is not None
        side = "only in the new run" if then is None else "missing from the new run"
        return {"step": present["step"], "what": [{"name": f"log point {side}"}], "tensors": []}
    figures = {*then, *now} - {_WALL_CLOCK, "tensors"}
    what = [
        {
            "name": name,
            "then": then.get(name),
            "now": now.get(name),
            "difference": _gap(then.get(name), now.get(name)),
        }
        for name in sorted(figures)
        if then.get(name) != now.get(name)
    ]
    a, b = then.get("tensors", {}), now.get("tensors", {})
    tensors = [name for name in a if a[name] != b.get(name)] + [n for n in b if n not in a]
    if not what and not tensors:
        return None
    return {"step": then["step"], "kind": _kind(then), "what": what, "tensors": tensors}


def compare_trees(then: tree.Tree, now: tree.Tree) -> list[dict[str, Any]]:
    """Each tensor that differs in a bit, in the order of the tree: by how much, and where."""
    a, b = tree.named_leaves(then), tree.named_leaves(now)
    return [
        {"tensor": name, **_distance(a[name], b[name])}
        for name in a
        if tree.leaf_bytes(a[name]) != tree.leaf_bytes(b[name])
    ]


def _distance(then: Tensor, now: Tensor) -> dict[str, Any]:
    gap = (then.cpu().double() - now.cpu().double()).abs()
    gap = gap.nan_to_num(math.inf)
    return {
        "largest_difference": gap.max().item(),
        "elements_differing": int((gap != 0).sum()) or None,  # None: only in the sign of a zero
        "elements": gap.numel(),
    }


def _gap(then: Any, now: Any) -> float | None:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (then, now))
    return abs(then - now) if numbers else None


def _kind(record: Mapping[str, Any]) -> str:
    return record.get("split", "training")
