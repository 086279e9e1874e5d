"""The page of all records: bench_results/README.md, and a plot for each record of steps.

    python -m benchmarks.page [--folder bench_results]

The same records give the same page.
"""

import argparse
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import growth, records
from benchmarks.compare_records import figures
from fcifar.data.files import write_text
from fcifar.report.figures import BLUE, INK, SOFT, VERMILION, save, tidy, titled
from fcifar.runs.bench import YARDSTICK, spread

STEP = re.compile(r"step (?P<network>\S+) batch (?P<batch>\d+) (?P<device>\S+)")
# Of Okabe and Ito's palette, for every colour vision.
COLORS = {
    "module": INK,
    "module_compiled": "#999999",
    "fcifar_eager": "#56B4E9",
    "fcifar_compiled": BLUE,
    "jax_nchw": "#E69F00",
    "jax_nhwc": VERMILION,
    "jax_scan": "#CC79A7",
}
OTHER = "#009E73"

INTRODUCTION = f"""# Measurements

Made by `python -m benchmarks.page` out of the records beside it, each of which holds every figure
and the environment. Times are medians; a factor is how many times as fast as `{YARDSTICK}`, the
tutorial's own step in PyTorch, or as the first line of a table. The spread is the distance between
the quartiles, as a part of the median. What was tried for speed, and what came of it, is in
[tried.md](tried.md).
"""


class Step(NamedTuple):
    """What a record knows of the steps of one network with one batch size on one device."""

    network: str
    batch: int
    device: str
    implementations: dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=records.RESULTS)
    for path in write(parser.parse_args().folder):
        print(path)


def write(folder: Path) -> list[Path]:
    """Write the page and the plots of the records in ``folder`` there."""
    parts, written = [INTRODUCTION], []
    for record in records.read_all(folder):
        parts.append(section(record))
        for device, found in by_device(steps(record)).items():
            path = folder / f"{record['name']}-{device}.png"
            written.append(plot(found, path, title(record)))
            parts.append(f"![Time per image against batch size on {device}]({path.name})\n")
        if record["name"] == "growth":
            written.append(growth.plot(record["results"], folder / "growth.png"))
            parts.append("![Cost against batch, width and number of images](growth.png)\n")
    page = folder / "README.md"
    write_text(page, "\n".join(parts))
    return [page, *written]


def title(record: dict[str, Any]) -> str:
    """Where and of what a record is, in a line."""
    about = record["environment"]
    threads = record.get("config", {}).get("threads") or about["threads"]
    cuda = [d for d in about["devices"] if d.startswith("cuda")]
    machine = ", ".join([about["cpu"], f"{threads} threads", *cuda])
    commit = (record.get("commit") or "unknown")[:12]
    return f"{machine}; torch {about['versions']['torch']}; commit {commit}"


def section(record: dict[str, Any]) -> str:
    """A record as Markdown."""
    parts = [f"## {record['name']}\n", f"{record['date'][:10]}; {title(record)}\n"]
    grouped = {name: group for name, group in record["results"].items() if _is_group(group)}
    found = steps(record)
    for network, device in dict.fromkeys((step.network, step.device) for step in found):
        of_it = [step for step in found if (step.network, step.device) == (network, device)]
        parts += [f"### A training step of {network} on {device}\n", step_table(of_it)]
    for name, group in grouped.items():
        if not STEP.fullmatch(name):
            parts += [f"### {name}\n", group_table(group)]
    rest = {name: value for name, value in record["results"].items() if name not in grouped}
    if lists := dict(figures(rest)):
        parts.append(list_table(lists))
    return "\n".join(parts)


def steps(record: dict[str, Any]) -> list[Step]:
    """The steps in a record, by network, device and batch size."""
    found = [
        Step(match["network"], int(match["batch"]), match["device"], group)
        for name, group in record["results"].items()
        if (match := STEP.fullmatch(name)) and _is_group(group)
    ]
    networks = list(dict.fromkeys(step.network for step in found))
    return sorted(found, key=lambda s: (networks.index(s.network), s.device, s.batch))


def by_device(found: Iterable[Step]) -> dict[str, list[Step]]:
    """Steps by the device that made them."""
    result: dict[str, list[Step]] = {}
    for step in found:
        result.setdefault(step.device, []).append(step)
    return result


def _is_group(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, dict) and "median_seconds" in value for value in values.values()
    )


# Tables ------------------------------------------------------------------------------------------


def step_table(found: Sequence[Step]) -> str:
    """A line for each batch size, a column for each implementation."""
    names = _implementations(found)

    def cell(step: Step, name: str) -> str:
        if name not in step.implementations:
            return ""
        seconds = step.implementations[name]["median_seconds"]
        text = duration(seconds)
        if YARDSTICK in step.implementations and name != YARDSTICK:
            times = step.implementations[YARDSTICK]["median_seconds"] / seconds
            text += f" ({times:.2f}x)"
        return text

    return markdown(
        ("batch", *names),
        ((f"{step.batch:,}", *(cell(step, name) for name in names)) for step in found),
    )


def group_table(group: dict[str, dict[str, Any]]) -> str:
    """A line for each implementation, with the ratio to the first."""
    first = next(iter(group.values()))["median_seconds"]
    return markdown(
        ("", "median", "times", "spread", "figures"),
        (
            (
                name,
                duration(f["median_seconds"]),
                f"{first / f['median_seconds']:.2f}x",
                *(_sample(f["seconds"]) if f.get("seconds") else ("", str(f.get("rounds", "")))),
            )
            for name, f in group.items()
        ),
    )


def list_table(lists: dict[tuple[str, ...], list[float]]) -> str:
    """A line for each list of figures; seconds in one place have the ratio to the first of them."""
    medians = {name: statistics.median(values) for name, values in lists.items()}
    firsts = {name[:-1]: median for name, median in reversed(medians.items())}

    def times(name: tuple[str, ...]) -> str:
        of_seconds = len(name) > 1 and name[-2].endswith("seconds")
        return f"{firsts[name[:-1]] / medians[name]:.2f}x" if of_seconds else ""

    return markdown(
        ("", "median", "times", "spread", "figures"),
        (
            (" / ".join(name), f"{float(f'{medians[name]:.4g}'):,.10g}", times(name), *_sample(v))
            for name, v in lists.items()
        ),
    )


def _sample(values: Sequence[float]) -> tuple[str, str]:
    """Spread and number."""
    return (f"{100 * spread(values):.0f} %" if len(values) > 1 else "", str(len(values)))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def duration(seconds: float) -> str:
    """Three digits, in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds * 1e6:.3g}'):g} us"


# Plot --------------------------------------------------------------------------------------------


def plot(found: Sequence[Step], path: Path, subtitle: str) -> Path:
    """Time per image against batch size: a panel a network, a line an implementation."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    networks = list(dict.fromkeys(step.network for step in found))
    names = _implementations(found)
    width, height, panel = 1.0 + 4.6 * len(networks) + 1.6, 4.6, 4.0
    figure = titled(width, height, f"Training step on {found[0].device}: time per image", subtitle)
    for place, network in enumerate(networks):
        left = (0.75 + 4.6 * place) / width
        axes = figure.add_axes((left, 0.6 / height, panel / width, (height - 1.65) / height))
        tidy(axes)
        of_it = [step for step in found if step.network == network]
        for name in names:
            points = [
                (step.batch, 1e6 * step.implementations[name]["median_seconds"] / step.batch)
                for step in of_it
                if name in step.implementations
            ]
            ours = name.startswith("fcifar")
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                label=name,
                color=COLORS.get(name, OTHER),
                linewidth=2.2 if ours else 1.5,
                linestyle="--" if name.startswith("jax") else "-",
                marker="o",
                markersize=5,
                markeredgecolor="white",
                zorder=4 if ours else 3,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([step.batch for step in of_it], [f"{step.batch:,}" for step in of_it])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.tick_params(which="minor", length=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(network, loc="left", size=11, color=INK)
        axes.set_xlabel("batch size", color=SOFT)
        if place == 0:
            axes.set_ylabel("microseconds an image", color=SOFT)
        if place == len(networks) - 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=9)
    return save(figure, path)


def _implementations(found: Sequence[Step]) -> list[str]:
    """Those that any of the steps has; those with a colour in its order, then others by name."""
    names = {name for step in found for name in step.implementations}
    return [*(n for n in COLORS if n in names), *sorted(names - set(COLORS))]


if __name__ == "__main__":
    main()
