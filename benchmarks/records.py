"""Records of measurements: JSON files with all values, the settings and the environment.

    python -m pytest benchmarks --benchmark-only --benchmark-json=out.json
    python -m benchmarks.records out.json micro

writes bench_results/micro.json from the output of pytest-benchmark, without the machine's name and
its owner.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import script
from fcifar.io import read_json, write_json
from fcifar.train import environment

RESULTS = Path(__file__).parent.parent / "bench_results"
MOST_ROUNDS = 101  # kept of a test of pytest-benchmark, which may have thousands


def write(name: str, config: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write ``bench_results/NAME.json`` with the environment, and return its path.

    ``name`` may also be a path, without ".json".
    """
    path = RESULTS / f"{name}.json"
    values = {
        "name": path.stem,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment.git_commit(),
        "environment": environment.describe(),
        "config": config,
        "results": results,
    }
    write_json(path, values)
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a record, or the output of ``fcifar bench --json``."""
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("results"), dict):
        raise SystemExit(f"{path} is not a record: it has no results")
    return values


def read_all(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Read every record of a folder, sorted by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(each) for name, each in values.items()}


def samples(
    values: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    """Yield every list of positive numbers in ``values`` with its path of keys.

    A list of dicts counts as a dict of lists.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            yield from samples(value, (*path, name))
    elif isinstance(values, list) and values and all(isinstance(v, dict) for v in values):
        for name in values[0]:
            yield from samples([v.get(name) for v in values], (*path, name))
    elif isinstance(values, list) and values and all(map(_is_positive, values)):
        yield path, values


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


# pytest-benchmark --------------------------------------------------------------------------------


def from_pytest(document: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the results of pytest-benchmark's JSON, by group and name."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for benchmark in document["benchmarks"]:
        stats = benchmark["stats"]
        results.setdefault(benchmark["group"], {})[benchmark["name"]] = {
            "median_seconds": stats["median"],
            "iqr_seconds": stats["iqr"],
            "rounds": stats["rounds"],
            "seconds": thin(stats["data"]),
            **benchmark["extra_info"],
        }
    return results


def thin(seconds: Sequence[float]) -> Sequence[float]:
    """Return at most ``MOST_ROUNDS`` of the values, evenly spaced."""
    return seconds[:: max(1, -(-len(seconds) // MOST_ROUNDS))]


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    results = from_pytest(json.loads(options.file.read_text()))
    print(write(options.name, {"threads": torch.get_num_threads()}, results))


if __name__ == "__main__":
    main()
