"""What is in a record, and tables of it in Markdown."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fcifar.bench.bench import YARDSTICK
from fcifar.bench.timing import spread

STEP = re.compile(r"step (?P<network>\S+) batch (?P<batch>\d+) (?P<device>\S+)")
ORDER = (
    *("module", "module_compiled", "fcifar_eager", "fcifar_compiled"),
    *("jax_nchw", "jax_nhwc", "jax_scan"),
)


class Step(NamedTuple):
    """What a record knows of the steps of one network with one batch size on one device."""

    network: str
    batch: int
    device: str
    implementations: dict[str, dict[str, Any]]


def about(record: Mapping[str, Any]) -> str:
    """Where and of what a record is, in a line."""
    return f"{machine(record)}; commit {(record.get('commit') or 'unknown')[:12]}"


def machine(record: Mapping[str, Any]) -> str:
    """Where a record is from, in a few words."""
    found = record["environment"]
    threads = record.get("config", {}).get("threads") or found["threads"]
    cuda = [d for d in found["devices"] if d.startswith("cuda")]
    where = ", ".join([found["cpu"], f"{threads} thread{'s' if threads != 1 else ''}", *cuda])
    return f"{where}; torch {found['versions']['torch']}"


def steps(record: Mapping[str, Any]) -> list[Step]:
    """The steps in a record, by network, device and batch size."""
    found = [
        Step(match["network"], int(match["batch"]), match["device"], group)
        for name, group in record["results"].items()
        if (match := STEP.fullmatch(name)) and is_group(group)
    ]
    networks = list(dict.fromkeys(step.network for step in found))
    return sorted(found, key=lambda s: (networks.index(s.network), s.device, s.batch))


def by_device(found: Iterable[Step]) -> dict[str, list[Step]]:
    """Steps by the device that made them."""
    result: dict[str, list[Step]] = {}
    for step in found:
        result.setdefault(step.device, []).append(step)
    return result


def is_group(values: Any) -> bool:
    """Whether values are implementations of one thing, each with its median."""
    return isinstance(values, dict) and all(
        isinstance(value, dict) and "median_seconds" in value for value in values.values()
    )


def step_table(found: Sequence[Step]) -> str:
    """A line for each batch size, a column for each implementation."""
    names = _implementations(found)

    def cell(step: Step, name: str) -> str:
        if name not in step.implementations:
            return ""
        seconds = step.implementations[name]["median_seconds"]
        text = duration(seconds)
        if YARDSTICK in step.implementations and name != YARDSTICK:
            times = step.implementations[YARDSTICK]["median_seconds"] / seconds
            text += f" ({times:.2f}x)"
        return text

    return markdown(
        ("batch", *names),
        ((f"{step.batch:,}", *(cell(step, name) for name in names)) for step in found),
    )


def group_table(group: dict[str, dict[str, Any]]) -> str:
    """A line for each implementation, with the ratio to the first."""
    first = next(iter(group.values()))["median_seconds"]
    return markdown(
        ("", "median", "times", "spread", "figures"),
        (
            (
                name,
                duration(f["median_seconds"]),
                f"{first / f['median_seconds']:.2f}x",
                *(_sample(f["seconds"]) if f.get("seconds") else ("", str(f.get("rounds", "")))),
            )
            for name, f in group.items()
        ),
    )


def list_table(lists: dict[tuple[str, ...], list[float]]) -> str:
    """A line for each list of figures; seconds in one place have the ratio to the first of them."""
    medians = {name: statistics.median(values) for name, values in lists.items()}
    firsts = {name[:-1]: median for name, median in reversed(medians.items())}

    def times(name: tuple[str, ...]) -> str:
        of_seconds = len(name) > 1 and name[-2].endswith("seconds")
        return f"{firsts[name[:-1]] / medians[name]:.2f}x" if of_seconds else ""

    return markdown(
        ("", "median", "times", "spread", "figures"),
        (
            (" / ".join(name), f"{float(f'{medians[name]:.4g}'):,.10g}", times(name), *_sample(v))
            for name, v in lists.items()
        ),
    )


def _sample(values: Sequence[float]) -> tuple[str, str]:
    """Spread and number."""
    return (f"{100 * spread(values):.0f} %" if len(values) > 1 else "", str(len(values)))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def duration(seconds: float) -> str:
    """Three digits, in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds * 1e6:.3g}'):g} us"


def _implementations(found: Sequence[Step]) -> list[str]:
    """Those that any of the steps has; those that are known in their order, then others by name."""
    names = {name for step in found for name in step.implementations}
    return [*(n for n in ORDER if n in names), *sorted(names - set(ORDER))]
