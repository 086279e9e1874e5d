"""Write the pages of all records: bench_results/README.md and docs/results.md, with its charts.

    python -m benchmarks.render [--folder bench_results] [--docs docs] [--check]

The first has every value, the second the charts. With --check nothing is written: files that are
not up to date are named, and the exit status is 1.
"""

from pathlib import Path

from benchmarks import records, script
from benchmarks.render import pages


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=records.RESULTS)
    parser.add_argument("--docs", type=Path, default=pages.DOCS)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not options.check:
        for path in pages.write(options.folder, options.docs):
            print(path)
    elif old := pages.outdated(options.folder, options.docs):
        raise SystemExit(f"not up to date: {', '.join(old)}; run python -m benchmarks.render")


if __name__ == "__main__":
    main()
