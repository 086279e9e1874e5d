"""Keep what pytest-benchmark measured, without what it says about the machine's name and owner.

python -m pytest benchmarks --benchmark-only --benchmark-json=out.json
python -m benchmarks.record out.json micro
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import records

KEPT = 101  # seconds of a benchmark, at most; some have thousands of rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    results = kept(json.loads(options.file.read_text()))
    print(records.write(options.name, {"threads": torch.get_num_threads()}, results))


def kept(document: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By group and name: the median, the seconds of rounds, and what the benchmark had to add."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for benchmark in document["benchmarks"]:
        stats = benchmark["stats"]
        results.setdefault(benchmark["group"], {})[benchmark["name"]] = {
            "median_seconds": stats["median"],
            "iqr_seconds": stats["iqr"],
            "rounds": stats["rounds"],
            "seconds": thinned(stats["data"]),
            **benchmark["extra_info"],
        }
    return results


def thinned(seconds: list[float]) -> list[float]:
    """At most ``KEPT`` of them, evenly over the time that it took."""
    step = max(1, -(-len(seconds) // KEPT))
    return seconds[::step]


if __name__ == "__main__":
    main()
