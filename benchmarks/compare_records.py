"""What moved between two records, beyond noise.

    python -m benchmarks.compare_records OLD.json NEW.json
        [--relative-to module] [--least 2] [--all]

Every list of figures that both records hold under the same name is compared: the ratio of medians,
with a 99 % bootstrap interval (both lists drawn again, 4,000 times). It moved if that interval lies
on one side of 1 and the ratio is more than --least percent away from it. Below five figures on
either side the interval is little more than their range, and the verdict "too few" says so.

The interval covers the noise within a record, not drift between records. Between
records of different days give --relative-to NAME: then each implementation's figures are first
divided by those of NAME, of the same repetition in the same group, so that drift cancels.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import records

DRAWS = 4_000
LEVEL = 0.99
FEWEST = 5


class Comparison(NamedTuple):
    """New against old figures of one name."""

    name: str
    old: float  # median
    new: float
    ratio: float  # new to old
    low: float  # of the interval of the ratio
    high: float
    verdict: str  # "moved", "same" or "too few"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--relative-to", metavar="NAME", help="an implementation in each group")
    parser.add_argument("--least", type=float, default=2.0, help="percent that count as a change")
    parser.add_argument("--all", action="store_true", help="show what did not move, too")
    options = parser.parse_args()
    old, new = records.read(options.old), records.read(options.new)
    for line in differences(old, new):
        print(line)
    compared = compare(old, new, relative_to=options.relative_to, least=options.least / 100)
    shown = [c for c in compared if options.all or c.verdict != "same"]
    print("\n".join(map(row, shown)))
    counts = ", ".join(
        f"{sum(c.verdict == verdict for c in compared)} {verdict}"
        for verdict in ("moved", "same", "too few")
    )
    print(f"{len(compared)} compared: {counts}")


def compare(
    old: dict[str, Any], new: dict[str, Any], *, relative_to: str | None = None, least: float = 0.02
) -> list[Comparison]:
    """Each list of figures that both records have, in the order of the old one."""
    before, after = (dict(figures(record["results"])) for record in (old, new))
    if relative_to is not None:
        before, after = relative(before, relative_to), relative(after, relative_to)
    return [_comparison(n, before[n], after[n], least) for n in before if n in after]


def figures(values: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list]]:
    """Every list of positive numbers by its path; of a list of dicts, one for each field."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from figures(value, (*above, name))
    elif isinstance(values, list) and values and all(isinstance(v, dict) for v in values):
        for name in values[0]:
            yield from figures([v.get(name) for v in values], (*above, name))
    elif isinstance(values, list) and values and all(map(_is_figure, values)):
        yield above, values


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def relative(
    found: dict[tuple[str, ...], list[float]], name: str
) -> dict[tuple[str, ...], list[float]]:
    """Figures divided by those of ``name`` in the same place, repetition by repetition."""
    divided = {}
    for path, values in found.items():
        for place in range(len(path)):
            base = found.get((*path[:place], name, *path[place + 1 :]))
            if base is not None and path[place] != name and len(base) == len(values):
                divided[path] = [v / b for v, b in zip(values, base, strict=True)]
    return divided


def _comparison(
    name: tuple[str, ...], old: Sequence[float], new: Sequence[float], least: float
) -> Comparison:
    before, after = statistics.median(old), statistics.median(new)
    low, high = interval(old, new)
    ratio = after / before
    if min(len(old), len(new)) < FEWEST:
        verdict = "too few"
    else:
        moved = (low > 1 or high < 1) and abs(ratio - 1) > least
        verdict = "moved" if moved else "same"
    return Comparison(" / ".join(name), before, after, ratio, low, high, verdict)


def interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the ratio of medians; the same figures give the same interval."""
    draw = np.random.default_rng(0)
    before, after = (
        np.median(draw.choice(np.asarray(v, dtype=float), (DRAWS, len(v))), axis=1)
        for v in (old, new)
    )
    low, high = np.quantile(after / before, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs beside the code: a line for each value of the environment and the config."""
    lines = []
    for part in ("environment", "config"):
        before, after = (dict(_flat(record.get(part, {}))) for record in (old, new))
        for name in sorted(before.keys() | after.keys()):
            values = before.get(name, "absent"), after.get(name, "absent")
            if values[0] != values[1] and name not in ("code", "git_commit", "name"):
                lines.append(f"{part}: {name} was {values[0]} and is {values[1]}")
    return lines


def _flat(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{above}.{name}" if above else name)
    else:
        yield above, values


def row(c: Comparison) -> str:
    """A comparison in one line."""
    return (
        f"{c.verdict:8} {100 * (c.ratio - 1):+7.1f} % "
        f"({100 * (c.low - 1):+.1f} to {100 * (c.high - 1):+.1f})  "
        f"{c.old:.4g} -> {c.new:.4g}  {c.name}"
    )


if __name__ == "__main__":
    main()
