"""What the parts of the results page have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.tables import machine

PLOTS = "results"  # the folder of the plots, beside the page

Record = Mapping[str, Any]


class Part(NamedTuple):
    """A part of the page, and the plots in it, by file name."""

    text: str
    plots: dict[str, str]


def runs_of(
    found: Sequence[Record], *needed: str
) -> list[tuple[str, Record, list[dict[str, Any]]]]:
    """Everything in the records that is a list of runs with these figures, by name."""
    return [
        (name, record, values)
        for record in found
        for name, runs in record["results"].items()
        if (values := dicts(runs)) and all(set(needed) <= set(run) for run in values)
    ]


def dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def sources(found: Sequence[Record]) -> str:
    """Which records, on what machine."""
    names = ", ".join(dict.fromkeys(record["name"] for record in found))
    return f"{'; '.join(dict.fromkeys(map(machine, found)))}; {names}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
