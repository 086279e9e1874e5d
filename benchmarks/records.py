"""Records of measurements: what was run, where, and every single figure."""

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcifar.io import read_json, write_json
from fcifar.train import environment

RESULTS = Path(__file__).parent.parent / "bench_results"


def median(values: list[float]) -> float:
    """The median, because timings are noisy."""
    return statistics.median(values)


def write(name: str, config: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write ``bench_results/NAME.json`` with the environment beside the figures."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "name": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": environment.git_commit(),
            "environment": environment.describe(),
            "config": config,
            "results": results,
        },
    )
    return path


def read(path: Path) -> dict[str, Any]:
    """A record that ``write`` wrote, or the document of ``fcifar bench --json``."""
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("results"), dict):
        raise SystemExit(f"{path} is no record: it has no results")
    return values


def read_all(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every record in a folder, by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]
