"""Records as tables in Markdown."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.records import samples
from fcifar.bench.bench import REFERENCE
from fcifar.bench.timing import spread

Record = Mapping[str, Any]

STEP = re.compile(r"step (?P<model>\S+) batch (?P<batch>\d+) (?P<device>\S+)")
ORDER = (
    *("module", "module_compiled", "fcifar_eager", "fcifar_compiled"),
    *("jax_nchw", "jax_nhwc", "jax_scan"),
)
COLUMNS = ("", "median", "speed-up", "spread", "values")


class Step(NamedTuple):
    """The measurements of training steps of one model, batch size and device."""

    model: str
    batch: int
    device: str
    implementations: dict[str, dict[str, Any]]

    def seconds(self, name: str) -> float:
        return self.implementations[name]["median_seconds"]

    def speedup(self, name: str) -> float | None:
        """How many times as fast as the reference; None without the reference."""
        known = REFERENCE in self.implementations
        return self.seconds(REFERENCE) / self.seconds(name) if known else None


def machine(record: Record) -> str:
    """Return the processor, threads, GPUs and torch version."""
    environment = record["environment"]
    threads = record.get("config", {}).get("threads") or environment["threads"]
    if isinstance(threads, list):  # of a record with several, or "auto"
        threads = " and ".join(map(str, threads))
    cuda = [d for d in environment["devices"] if d.startswith("cuda")]
    where = ", ".join([environment["cpu"], f"{threads} thread{'s' if threads != 1 else ''}", *cuda])
    return f"{where}; torch {environment['versions']['torch']}"


def steps(record: Record) -> list[Step]:
    """Return the steps of a record, sorted by model, device and batch size."""
    found = [
        Step(match["model"], int(match["batch"]), match["device"], group)
        for name, group in record["results"].items()
        if (match := STEP.fullmatch(name)) and is_group(group)
    ]
    models = list(dict.fromkeys(step.model for step in found))
    return sorted(found, key=lambda s: (models.index(s.model), s.device, s.batch))


def is_group(values: Any) -> bool:
    """Return whether values are implementations of one thing, each with its median."""
    return isinstance(values, dict) and all(
        isinstance(value, dict) and "median_seconds" in value for value in values.values()
    )


# Tables ------------------------------------------------------------------------------------------


def section(record: Record) -> str:
    """Return a record as a section with all its values."""
    commit = (record.get("commit") or "unknown")[:12]
    parts = [
        f"## {record['name']}\n",
        f"{record['date'][:10]}; {machine(record)}; commit {commit}\n",
    ]
    found = steps(record)
    for model, device in dict.fromkeys((step.model, step.device) for step in found):
        of_model = [step for step in found if (step.model, step.device) == (model, device)]
        parts += [f"### A training step of {model} on {device}\n", step_table(of_model)]
    groups = {name: group for name, group in record["results"].items() if is_group(group)}
    for name, group in groups.items():
        if not STEP.fullmatch(name):
            parts += [f"### {name}\n", group_table(group)]
    rest = {name: value for name, value in record["results"].items() if name not in groups}
    if lists := dict(samples(rest)):
        parts.append(list_table(lists))
    return "\n".join(parts)


def step_table(found: Sequence[Step]) -> str:
    """Return a table with a row for each batch size and a column for each implementation."""
    known = {name for step in found for name in step.implementations}
    names = [*(n for n in ORDER if n in known), *sorted(known - set(ORDER))]

    def cell(step: Step, name: str) -> str:
        if name not in step.implementations:
            return ""
        times = step.speedup(name) if name != REFERENCE else None
        return duration(step.seconds(name)) + (f" ({times:.2f}x)" if times else "")

    return markdown(
        ("batch", *names),
        ((f"{step.batch:,}", *(cell(step, name) for name in names)) for step in found),
    )


def group_table(group: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row for each implementation, and its ratio to the first."""
    first = next(iter(group.values()))["median_seconds"]

    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        seconds = found["median_seconds"]
        sample = _sample(found["seconds"]) if found.get("seconds") else ("", "")
        return [name, duration(seconds), f"{first / seconds:.2f}x", *sample]

    return markdown(COLUMNS, (row(name, found) for name, found in group.items()))


def list_table(lists: Mapping[tuple[str, ...], list[float]]) -> str:
    """Return a table with a row for each list; lists of seconds have a ratio to their first."""
    medians = {name: statistics.median(values) for name, values in lists.items()}
    firsts = {name[:-1]: median for name, median in reversed(medians.items())}

    def row(name: tuple[str, ...], values: list[float]) -> list[str]:
        of_seconds = len(name) > 1 and name[-2].endswith("seconds")
        times = f"{firsts[name[:-1]] / medians[name]:.2f}x" if of_seconds else ""
        median = f"{float(f'{medians[name]:.4g}'):,.10g}"
        return [" / ".join(name), median, times, *_sample(values)]

    return markdown(COLUMNS, (row(name, values) for name, values in lists.items()))


def _sample(values: Sequence[float]) -> tuple[str, str]:
    """Return the spread and the number of values."""
    return (f"{100 * spread(values):.0f} %" if len(values) > 1 else "", str(len(values)))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with its first column aligned left and the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def duration(seconds: float) -> str:
    """Return a duration with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds * 1e6:.3g}'):g} us"
