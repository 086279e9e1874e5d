"""The results page: docs/results.md, and its plots beside it, out of the records.

``benchmarks.page`` writes it together with bench_results/README.md, which has every figure.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import accuracy_parts, speed_parts
from benchmarks.parts import PLOTS, Record
from fcifar.io import write_text

INTRODUCTION = """# Results

Made by `python -m benchmarks.page` out of the records in
[bench_results](../bench_results/README.md), where every figure is, with the spread and the
environment; nothing here is typed by hand. The plots know light and dark.
"""
PARTS = (
    accuracy_parts.recipes,
    accuracy_parts.ablation,
    speed_parts.training_steps,
    speed_parts.whole_trainings,
    speed_parts.growth,
    accuracy_parts.replicas,
    speed_parts.gradients,
)


def write(folder: Path, found: Sequence[Record]) -> list[Path]:
    """Write ``results.md`` and its plots into ``folder``; plots that are no longer made go."""
    made = [part for make in PARTS if (part := make(found)) is not None]
    plots = {name: svg for part in made for name, svg in part.plots.items()}
    place = folder / PLOTS
    for path in place.glob("*.svg"):
        if path.name not in plots:
            path.unlink()
    for name, svg in plots.items():
        write_text(place / name, svg)
    page = folder / "results.md"
    write_text(page, "\n".join([INTRODUCTION, *(part.text for part in made)]))
    return [page, *(place / name for name in plots)]
