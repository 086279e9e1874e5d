"""The pages of all records: bench_results/README.md and docs/results.md, with its plots.

    python -m benchmarks.page [--folder bench_results] [--docs docs] [--check]

The first has every figure, the second the pictures. The same records give the same bytes. With
--check nothing is written; what is not up to date is named, and the exit status is 1.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import parts, records, results, tables
from benchmarks.compare_records import figures
from fcifar.bench.bench import YARDSTICK
from fcifar.io import write_text

DOCS = records.RESULTS.parent / "docs"

INTRODUCTION = f"""# Measurements

Made by `python -m benchmarks.page` out of the records beside it, each of which holds every figure
and the environment. Times are medians; a factor is how many times as fast as `{YARDSTICK}`, the
tutorial's own step in PyTorch, or as the first line of a table. The spread is the distance between
the quartiles, as a part of the median. Pictures of it are in [results.md](../docs/results.md); what
was tried for speed, and what came of it, is in [tried.md](tried.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=records.RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not options.check:
        for path in write(options.folder, options.docs):
            print(path)
    elif old := outdated(options.folder, options.docs):
        raise SystemExit(f"not up to date: {', '.join(old)}; run python -m benchmarks.page")


def write(folder: Path, docs: Path) -> list[Path]:
    """Write both pages of the records in ``folder``: the tables there, the pictures to ``docs``."""
    return _write(records.read_all(folder), folder, docs)


def _write(found: list[dict[str, Any]], folder: Path, docs: Path) -> list[Path]:
    page = folder / "README.md"
    write_text(page, "\n".join([INTRODUCTION, *map(section, found)]))
    return [page, *results.write(docs, found)]


def outdated(folder: Path, docs: Path) -> list[str]:
    """The names of files that ``write`` would change, add or remove."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        written = _write(records.read_all(folder), place / "folder", place / "docs")
        made = {path.relative_to(place): path.read_bytes() for path in written}
    there = {
        Path("folder/README.md"): folder / "README.md",
        Path("docs/results.md"): docs / "results.md",
    }
    plots = (docs / parts.PLOTS).glob("*.svg")
    there |= {Path("docs") / parts.PLOTS / path.name: path for path in plots}
    return sorted(
        path.name
        for path in made.keys() | there.keys()
        if path not in made
        or path not in there
        or not there[path].is_file()
        or there[path].read_bytes() != made[path]
    )


def section(record: dict[str, Any]) -> str:
    """A record as Markdown."""
    parts = [f"## {record['name']}\n", f"{record['date'][:10]}; {tables.about(record)}\n"]
    grouped = {name: group for name, group in record["results"].items() if tables.is_group(group)}
    found = tables.steps(record)
    for network, device in dict.fromkeys((step.network, step.device) for step in found):
        of_it = [step for step in found if (step.network, step.device) == (network, device)]
        parts += [f"### A training step of {network} on {device}\n", tables.step_table(of_it)]
    for name, group in grouped.items():
        if not tables.STEP.fullmatch(name):
            parts += [f"### {name}\n", tables.group_table(group)]
    rest = {name: value for name, value in record["results"].items() if name not in grouped}
    if lists := dict(figures(rest)):
        parts.append(tables.list_table(lists))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
