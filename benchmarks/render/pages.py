"""Write the pages of all records: bench_results/README.md and docs/results.md, with its charts.

    python -m benchmarks.render [--folder bench_results] [--docs docs] [--check]

The first has every value, the second the charts. With --check nothing is written: files that are
not up to date are named, and the exit status is 1.
"""

from pathlib import Path

from benchmarks import records, script
from benchmarks.render import charts, sections, tables
from benchmarks.render.sections import CHARTS
from fcifar.bench.bench import REFERENCE
from fcifar.io import write_text

DOCS = records.RESULTS.parent / "docs"

MEASUREMENTS = f"""# Measurements

Made by `python -m benchmarks.render` from the records in this folder, which have every value and
the environment. Times are medians. A speed-up is relative to `{REFERENCE}`, the tutorial's own step
in PyTorch, or to the first row of a table. The spread is the interquartile range relative to the
median. [results.md](../docs/results.md) has charts; [tried.md](tried.md) lists what was tried for
speed, with the outcomes.
"""
RESULTS = """# Results

Made by `python -m benchmarks.render` from the records in
[bench_results](../bench_results/README.md), which have every value, the spread and the environment.
"""


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=records.RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not options.check:
        for path in write(options.folder, options.docs):
            print(path)
    elif old := outdated(options.folder, options.docs):
        raise SystemExit(f"not up to date: {', '.join(old)}; run python -m benchmarks.render")


def render(folder: Path) -> dict[str, str]:
    """Return the text of each file, by its name below the folder of records or of docs.

    Args:
        folder: of records.
    """
    every = records.read_all(folder)
    made = [section for make in sections.SECTIONS if (section := make(every)) is not None]
    return {
        "README.md": "\n".join([MEASUREMENTS, *map(tables.section, every)]),
        "results.md": "\n".join([RESULTS, *(section.markdown() for section in made)]),
        **{f"{CHARTS}/{chart.file}": chart.svg for each in made for chart in each.charts},
    }


def write(folder: Path, docs: Path) -> list[Path]:
    """Write the tables to the folder of records, and the charts to ``docs``; return the paths.

    Charts that are no longer made are removed.
    """
    made = {_path(name, folder, docs): text for name, text in render(folder).items()}
    for path in _charts(docs) - made.keys():
        path.unlink()
    for path, text in made.items():
        write_text(path, text)
    return [*made]


def outdated(folder: Path, docs: Path) -> list[str]:
    """Return the names of files that ``write`` would change, add or remove.

    A chart by another version of matplotlib counts as up to date.
    """
    made = {_path(name, folder, docs): text.encode() for name, text in render(folder).items()}
    wrong = [
        path
        for path, content in made.items()
        if not path.is_file() or not charts.same_file(path.read_bytes(), content)
    ]
    return sorted(path.name for path in {*wrong, *(_charts(docs) - made.keys())})


def _path(name: str, folder: Path, docs: Path) -> Path:
    return (folder if name == "README.md" else docs) / name


def _charts(docs: Path) -> set[Path]:
    return {*(docs / CHARTS).glob("*.svg")}
