"""Keep what pytest-benchmark measured, without what it says about the machine's name and owner.

python -m pytest benchmarks --benchmark-only --benchmark-json=out.json
python -m benchmarks.record out.json micro
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks import records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for benchmark in json.loads(options.file.read_text())["benchmarks"]:
        stats = benchmark["stats"]
        results.setdefault(benchmark["group"], {})[benchmark["name"]] = {
            "median_seconds": stats["median"],
            "iqr_seconds": stats["iqr"],
            "rounds": stats["rounds"],
        }
    print(records.write(options.name, {"threads": torch.get_num_threads()}, results))


if __name__ == "__main__":
    main()
