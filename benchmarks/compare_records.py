"""Changes between two records beyond noise.

    python -m benchmarks.compare_records OLD.json NEW.json
        [--relative-to module] [--least 2] [--all]

Compares every list of values that both records have under the same name: the ratio of medians, with
a 99 % bootstrap interval of 4,000 draws. A value moved if the interval excludes 1 and the ratio
differs from it by more than --least percent. With fewer than five values on either side the
verdict is "too few", because the interval is then little more than their range.

The interval covers the noise within a record, not drift between records. Use --relative-to NAME for
records of different days: it divides the values of each implementation by those of NAME, of the
same repetition in the same group, so that drift cancels. --all shows the values that did not move.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import records, script

DRAWS = 4_000
LEVEL = 0.99
FEWEST = 5


class Comparison(NamedTuple):
    """New against old values of one name."""

    name: str
    old: float  # median
    new: float
    ratio: float  # new to old
    low: float  # of the interval of the ratio
    high: float
    verdict: str  # "moved", "same" or "too few"


def main() -> None:
    parser = script.parser(__doc__, relative_to=str, least=2.0)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    old, new = records.read(options.old), records.read(options.new)
    compared = compare(old, new, relative_to=options.relative_to, least=options.least / 100)
    listed = [c for c in compared if options.all or c.verdict != "same"]
    verdicts = [c.verdict for c in compared]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("moved", "same", "too few"))
    lines = [*differences(old, new), *map(row, listed), f"{len(compared)} compared: {counts}"]
    print("\n".join(lines))


def compare(
    old: dict[str, Any], new: dict[str, Any], *, relative_to: str | None = None, least: float = 0.02
) -> list[Comparison]:
    """Compare each list of values that both records have, in the order of the old one."""
    before, after = (dict(records.samples(record["results"])) for record in (old, new))
    if relative_to is not None:
        before, after = relative(before, relative_to), relative(after, relative_to)
    compared = []
    for name in (name for name in before if name in after):
        first, second = before[name], after[name]
        low, high = interval(first, second)
        medians = statistics.median(first), statistics.median(second)
        ratio = medians[1] / medians[0]
        moved = (low > 1 or high < 1) and abs(ratio - 1) > least
        few = min(len(first), len(second)) < FEWEST
        verdict = "too few" if few else "moved" if moved else "same"
        compared.append(Comparison(" / ".join(name), *medians, ratio, low, high, verdict))
    return compared


def relative(
    found: dict[tuple[str, ...], list[float]], name: str
) -> dict[tuple[str, ...], list[float]]:
    """Divide values by those of ``name`` at the same path, for each repetition."""
    divided = {}
    for path, values in found.items():
        for i in range(len(path)):
            base = found.get((*path[:i], name, *path[i + 1 :]))
            if base is not None and path[i] != name and len(base) == len(values):
                divided[path] = [v / b for v, b in zip(values, base, strict=True)]
    return divided


def interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Return the bootstrap interval of the ratio of medians, with fixed draws."""
    draw = np.random.default_rng(0)
    before, after = (
        np.median(draw.choice(np.asarray(v, dtype=float), (DRAWS, len(v))), axis=1)
        for v in (old, new)
    )
    low, high = np.quantile(after / before, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line for each difference of environment and config, except the commit."""
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
    """Return a comparison as a line."""
    return (
        f"{c.verdict:8} {100 * (c.ratio - 1):+7.1f} % "
        f"({100 * (c.low - 1):+.1f} to {100 * (c.high - 1):+.1f})  "
        f"{c.old:.4g} -> {c.new:.4g}  {c.name}"
    )


if __name__ == "__main__":
    main()
