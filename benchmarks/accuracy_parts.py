"""Parts of the results page about accuracy: of recipes, of their parts, of their seeds."""

import statistics
from collections.abc import Sequence

from benchmarks.drawing import Line, Panel, Row, plot, rows
from benchmarks.parts import PLOTS, Part, Record, dicts, percent, runs_of, sources
from benchmarks.tables import markdown
from fcifar.analysis import confidence


def recipes(found: Sequence[Record]) -> Part | None:
    """Accuracy of the recipes against the time that they take, each run a dot."""
    runs = runs_of(found, "test_accuracy", "process_seconds")
    if not runs:
        return None
    plain = [(name, run) for name, _, each in runs for run in each]
    seen = [(name, run) for name, run in plain if run.get("tta_accuracy") is not None]
    latest = {name: max(run["process_seconds"] for run in each) for name, _, each in runs}
    labels = [name if run["process_seconds"] == latest[name] else "" for name, run in plain]
    lines = [
        Line(
            "each run, one view of an image",
            [(run["process_seconds"], 100 * run["test_accuracy"]) for _, run in plain],
            0,
            "dots",
            labels,
        ),
        Line(
            "the same with test-time augmentation",
            [(run["process_seconds"], 100 * run["tta_accuracy"]) for _, run in seen],
            1,
            "hollow",
        ),
    ]
    panel = Panel(
        [line for line in lines if line.points],
        "",
        "seconds from the start of the process",
        "test accuracy, %",
        log="x",
        width=760,
    )
    title = "Accuracy against time"
    svg = plot([panel], title, sources([record for _, record, _ in runs]), 420)
    table = markdown(
        ("recipe", "runs", "accuracy", "with TTA", "95 % interval of the mean", "training",
         "train + eval time", "process"),
        (_recipe_row(name, each) for name, _, each in runs),
    )  # fmt: skip
    text = (
        f"## {title}\n\n![{title}]({PLOTS}/recipes.svg)\n\nAccuracies are means, and the interval "
        "is that of the last accuracy before it; times are medians. Train + eval time excludes "
        f"compilation.\n\n{table}"
    )
    return Part(text, {"recipes.svg": svg})


def _recipe_row(name: str, runs: Sequence[Record]) -> list[str]:
    plain = confidence.summarize([100 * run["test_accuracy"] for run in runs])
    seen = [100 * run["tta_accuracy"] for run in runs if run.get("tta_accuracy") is not None]
    views = confidence.summarize(seen) if seen else None
    last = views or plain
    return [
        name,
        str(len(runs)),
        f"{plain.mean:.2f} %",
        f"{views.mean:.2f} %" if views else "",
        f"{last.low:.2f} to {last.high:.2f}" if last.n > 1 else "",
        *(
            f"{statistics.median(times):,.0f} s"
            if (times := [run[key] for run in runs if run.get(key)])
            else ""
            for key in ("train_seconds", "convention_seconds", "process_seconds")
        ),
    ]


def ablation(found: Sequence[Record]) -> Part | None:
    """What each part of a recipe is worth: one changed at a time, a dot for each seed."""
    runs = runs_of(found, "valid_accuracy", "train_seconds")
    if not runs:
        return None
    values = {name: [100 * run["valid_accuracy"] for run in each] for name, _, each in runs}
    first = next(iter(values))
    base = statistics.fmean(values[first])
    ranked = sorted(values, key=lambda name: -statistics.fmean(values[name]))
    gaps = {name: f"{statistics.fmean(values[name]) - base:+.1f}" for name in ranked}
    gaps[first] = ""
    drawn = [
        Row(name, values[name], 2 if name == first else 0, None, gaps[name]) for name in ranked
    ]
    title = "What each part is worth"
    svg = rows(drawn, title, sources([r for _, r, _ in runs]), "validation accuracy, %", mark=base)
    text = (
        f"## {title}\n\n![{title}]({PLOTS}/ablation.svg)\n\nOne part of a recipe changed at a "
        "time, on images held out; a dot is a seed, the number the difference of the means in "
        "points.\n"
    )
    return Part(text, {"ablation.svg": svg})


def replicas(found: Sequence[Record]) -> Part | None:
    """How far apart the networks of one recipe come out."""
    drawn, found_in, notes = [], [], []
    for record in found:
        for each in dicts(record["results"].get("processes")):
            together = each.get("together", {})
            if "accuracies" in together:
                accuracies = [100 * value for value in together["accuracies"]]
                low, high = together["interval95"]
                name = f"{record['config']['recipe']}, {together['replicas']} seeds"
                drawn.append(Row(name, accuracies, 0, (100 * low, 100 * high)))
                found_in.append(record)
                notes.append(_of_spread(record, each, together))
    if not drawn:
        return None
    title = "How far apart the seeds of a recipe are"
    svg = rows(drawn, title, sources(found_in), "test accuracy, %; the bar: 95 % of the mean")
    text = f"## {title}\n\n![{title}]({PLOTS}/replicas.svg)\n\n" + "\n".join(notes)
    return Part(text, {"replicas.svg": svg})


def _of_spread(record: Record, each: Record, together: Record) -> str:
    share = each["group_seconds"] / each["alone_seconds"]
    return (
        f"{together['replicas']} seeds of `{record['config']['recipe']}`: standard deviation "
        f"{100 * together['std_accuracy']:.2f} points, of which errors independent from image to "
        f"image give {100 * together['std_independent']:.2f}; the mean of their probabilities has "
        f"{percent(together['ensemble_accuracy'])}. One process took {each['group_seconds']:,.0f} "
        f"s, as many processes as seeds took {each['alone_seconds']:,.0f} s: {share:.2f} of it.\n"
    )
