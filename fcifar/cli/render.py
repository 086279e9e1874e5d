"""Results and run directories as text for a terminal."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fcifar.cli import output
from fcifar.report import rows, text

if TYPE_CHECKING:
    from pathlib import Path

    from fcifar.runs.listing import Entry

MEMBERS = 40  # most rows of a table of runs


# The report of a run ------------------------------------------------------------------------------


def show_report(report: dict[str, Any]) -> None:
    """Print a run's report."""
    train_eval = output.seconds(report["convention_seconds"])
    output.class_table(report["per_class"])
    output.stdout.print()
    output.facts(
        [
            *measured("test accuracy", report, f" of {report['test_n']:,}", "test_"),
            *_average(report),
            *_privacy(report),
            ("model", text.selected(report)),
            _training(report),
            ("compiling", output.seconds(report["compile_seconds"])),
            ("timings", f"{train_eval} of training and evaluation"),
            ("process", f"{output.seconds(report['process_seconds'])} from its start"),
            ("run", report["run_dir"]),
            ("digest", report["params_digest"]),
        ]
    )


def measured(name: str, report: dict[str, Any], of: str, prefix: str = "") -> list[tuple[str, str]]:
    """Lines on accuracy, which is called ``name``, loss, calibration and mistakes.

    Args:
        of: text behind the accuracy, such as the number of images.
        prefix: of the report's keys for accuracy and loss.
    """
    confidence, error = (output.percent(report[key]) for key in ("mean_confidence", "ece"))
    return [
        (name, output.accuracy(report[f"{prefix}accuracy"], report["interval95"], of)),
        *_tta(report),
        (f"{prefix}loss".replace("_", " "), output.number(report[f"{prefix}loss"])),
        ("calibration", f"mean confidence {confidence}, expected calibration error {error}"),
        ("mistakes", output.confusions(report) or "none"),
    ]


def _tta(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A line on the accuracy with test-time augmentation, if there is one."""
    if "tta" not in report:
        return []
    accuracy = output.accuracy(report["tta_accuracy"], report["tta_interval95"])
    return [(f"with --tta {report['tta']}", accuracy)]


def _average(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on the average beside the weights, if there is one."""
    if "average" not in report:
        return []
    accuracy = output.accuracy(report["average_accuracy"], report["average_interval95"])
    facts = [(f"average ({report['average']})", accuracy)]
    if "average_tta_accuracy" in report:
        of_views = output.accuracy(report["average_tta_accuracy"], report["average_tta_interval95"])
        facts.append((f"with --tta {report['tta']}", of_views))
    return [*facts, ("average loss", output.number(report["average_loss"]))]


def _privacy(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A line on the guarantee of a private run."""
    return [("privacy", text.privacy(report))] if "privacy" in report else []


def _training(report: dict[str, Any]) -> tuple[str, str]:
    steps = f"{report['steps']:,} steps in {output.seconds(report['train_seconds'])}"
    return "training", f"{steps}, {report['images_per_second']:,.0f} images/s"


# Per-example scores, and several models -----------------------------------------------------------


def ensemble_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on several models, if there are several."""
    if "networks" not in result:
        return []
    networks = result["networks"]
    accuracy, disagreement = networks["ensemble_accuracy"], networks["mean_disagreement"]
    return [
        (
            f"{networks['replicas']} models",
            output.accuracy(networks["mean_accuracy"], networks["interval95"], " on average"),
        ),
        (
            "together",
            f"{output.percent(accuracy, 2)} by their mean probabilities; "
            f"{output.percent(disagreement)} of pairs disagree on an image",
        ),
        ("spread", text.spread(networks)),
    ]


# The summary of a sweep ---------------------------------------------------------------------------


def show_sweep(summary: dict[str, Any]) -> None:
    """Print the summary of a sweep."""
    cells, members = summary["cells"], summary["members"]
    if len(cells) > 1:
        _show_cells(summary)
    else:
        _show_members(members)
    output.stdout.print()
    facts = _of_replicas(cells[0]) if len(cells) == 1 and cells[0]["together"] else []
    facts += [("failed", f"{m['name']}: {m['failed']}") for m in members if "failed" in m]
    if len(cells) > 1:
        facts.append(("best", _best(summary)))
    how = "one after another" if summary["method"] == "loop" else "all at once, by vmap"
    runs = output.count(len(members), "run")
    facts += [
        ("training", f"{runs}, {how}: {output.seconds(summary['train_seconds'])}"),
        ("compiling", output.seconds(summary["compile_seconds"])),
        ("process", f"{output.seconds(summary['process_seconds'])} from its start"),
        ("runs", summary["run_dir"]),
    ]
    output.facts(facts)


def _of_replicas(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on several models of one recipe."""
    together, tta = cell["together"], cell["tta_accuracy"]
    of = f" on average over {together['replicas']} seeds"
    facts = [
        ("test accuracy", output.accuracy(together["mean_accuracy"], together["interval95"], of)),
        ("spread", text.spread(together)),
        ("ensemble", f"{output.percent(together['ensemble_accuracy'], 2)}, of mean probabilities"),
        (
            "disagreement",
            f"two models differ on {output.percent(together['mean_disagreement'])} of the images",
        ),
    ]
    for name, figures in (("average", cell.get("average_accuracy")), ("with --tta", tta)):
        if figures:
            spread = f"{output.percent(figures['mean'], 2)}, deviation {100 * figures['std']:.2f}"
            facts.insert(1, (name, spread))
    return facts


def _show_members(members: Sequence[dict[str, Any]]) -> None:
    average = ("average",) if any("average" in m for m in members) else ()
    cells = [
        (m["name"], "failed", *("-" for _ in average), "-", "-")
        if "failed" in m
        else (
            m["name"],
            output.percent(m["test_accuracy"], 2),
            *(output.percent(m.get("average_accuracy"), 2) for _ in average),
            output.number(m["test_loss"]),
            output.seconds(m["train_seconds"]),
        )
        for m in members[:MEMBERS]
    ]
    output.table(("run", "test accuracy", *average, "test loss", "training"), cells)
    show_rest(len(members), "run", "in the summary")


def _show_cells(summary: dict[str, Any]) -> None:
    has_average = any(cell.get("average_accuracy") for cell in summary["cells"])
    average = ("average",) if has_average else ()
    cells = [
        (
            *map(str, cell["changes"].values()),
            _mean(cell["valid_accuracy"]),
            _mean(cell["test_accuracy"]),
            *(_mean(cell["average_accuracy"]) for _ in average),
            f"{cell['test_loss']['mean']:.4f}" if cell["test_loss"] else "-",
            str(len(cell["runs"])) + (f", {cell['failed']} failed" if cell["failed"] else ""),
        )
        for cell in summary["cells"][:MEMBERS]
    ]
    output.table((*summary["swept"], "validation", "test", *average, "test loss", "runs"), cells)
    show_rest(len(summary["cells"]), "grid point", "in the summary")


def show_rest(number: int, what: str, where: str, plural: str = "") -> None:
    if number > MEMBERS:
        output.line(f"... and {output.count(number - MEMBERS, what, plural)} more {where}")


def _mean(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "-"
    mean = output.percent(figures["mean"], 2)
    return mean if figures["n"] == 1 else f"{mean} ±{100 * figures['std']:.2f}"


def _best(summary: dict[str, Any]) -> str:
    if "fold" in summary["swept"]:
        return "not chosen: each fold has other validation images"
    if summary["best"] is None:
        return "not chosen: needs validation images; give --valid-fraction 0.1"
    (cell,) = [cell for cell in summary["cells"] if cell["name"] == summary["best"]]
    accuracy = output.percent(cell["valid_accuracy"]["mean"], 2)
    return f"{summary['best']}, by its accuracy on validation images, {accuracy}"


# Attributions -------------------------------------------------------------------------------------


def show_explained(found: Sequence[Mapping[str, Any]], folder: "Path") -> None:
    """Print what is explained in the figure of ``--explain``."""
    output.stdout.print()
    output.table(*rows.explained(found))
    output.stdout.print()
    output.facts([("drawn", folder / "explained.png")])


# Run directories ----------------------------------------------------------------------------------


def entry_values(entry: "Entry") -> dict[str, Any]:
    return {**entry._asdict(), "path": str(entry.path), "resume": entry.resume}


def entry_summary(entry: "Entry") -> str:
    if not entry.recipe:
        return ""
    about = "" if entry.state == "finished" and not entry.members else f"; {entry.about}"
    return f"{entry.recipe} on {entry.dataset}, seed {entry.seed}{about}"


def date(created: str) -> str:
    """Return an ISO date in local time, to the minute."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return created or "-"


def show_run(entry: "Entry", json: bool) -> None:
    """Print what a run directory holds, and the commands that use it."""
    from fcifar import recipes
    from fcifar.train import run_dir

    manifest = run_dir.read_manifest(entry.path)
    report = run_dir.read_report(entry.path) if entry.state == "finished" else None
    changes, commands = recipes.changes(manifest["recipe"]), _commands(entry)
    if json:
        values = {"changes": changes, "commands": commands, "manifest": manifest, "report": report}
        output.document({**entry_values(entry), **values})
        return
    output.facts(
        [
            *_state(entry),
            *[("" if i else "changed", words) for i, words in enumerate(_in_words(changes))],
            *_settings(manifest),
            ("begun", date(entry.created)),
            *(_figures(report) if report else []),
            ("size", output.size(entry.bytes)),
            *commands.items(),
        ]
    )


def _state(entry: "Entry") -> list[tuple[str, str]]:
    return [
        ("group" if entry.members else "run", str(entry.path)),
        ("state", f"{entry.state}, {entry.about}"),
        ("recipe", entry.recipe),
    ]


def _settings(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    runtime, data = manifest["runtime"], manifest["dataset"]
    versions = manifest["environment"]["versions"]
    classes = output.count(len(data["classes"]), "class", "classes")
    images = f"{data['train']:,} + {data['test']:,} images of {classes}"
    how = "compiled" if manifest["compile"] else "eager"
    exact = "deterministic" if runtime["deterministic"] else "fast"
    where = f"{runtime['device']}, {output.count(runtime['threads'], 'thread')}"
    given = manifest["recipe"].get("valid") == "given"
    valid = [("validation", f"{data['valid']:,} images of the data set's own")] if given else []
    return [
        ("data set", f"{data['name']}, {images}, digest {data['digest'][:12]}"),
        *valid,
        ("seed", str(manifest["seed"])),
        ("computed", f"{where}, {runtime['precision']}, {how}, {exact}"),
        ("versions", f"fcifar {versions['fcifar']}, torch {versions['torch']}"),
    ]


def _figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    of = f" of {report['test_n']:,}"
    return [
        ("test accuracy", output.accuracy(report["test_accuracy"], report["interval95"], of)),
        *_tta(report),
        ("test loss", output.number(report["test_loss"])),
        *_average(report),
        *_privacy(report),
        _training(report),
        ("digest", report["params_digest"]),
    ]


def _in_words(changes: Mapping[str, Any] | None) -> list[str]:
    if changes is None:
        return ["this fcifar has no recipe of that name"]
    if not changes:
        return ["nothing"]
    shown = text.shown
    return [f"{name} {shown(now)}, not {shown(then)}" for name, (then, now) in changes.items()]


def _commands(entry: "Entry") -> dict[str, str]:
    if entry.resume:
        return {"go on": entry.resume}
    if entry.state != "finished":
        return {}
    return {"check": f"fcifar verify {entry.path}", "reproduce": f"fcifar reproduce {entry.path}"}


def show_group(entry: "Entry", json: bool) -> None:
    """Print what a directory of a sweep holds, and the commands that use it."""
    from fcifar.runs import listing
    from fcifar.train import run_dir

    spec = run_dir.read_manifest(entry.path, run_dir.SWEEP)
    members, commands = list(listing.members(entry.path)), _commands(entry)
    if json:
        values = {"runs": [entry_values(member) for member in members], "commands": commands}
        output.document({**entry_values(entry), **values})
        return
    cells = [
        (m.name, m.state, m.about, output.percent(m.test_accuracy, 2), output.size(m.bytes))
        for m in members[:MEMBERS]
    ]
    output.table(("run", "state", "", "test", "size"), cells)
    show_rest(len(members), "run", "in --json")
    output.stdout.print()
    swept = ", ".join({name: None for m in spec["members"] for name in m["changes"]})
    output.facts(
        [
            *_state(entry),
            *([("swept", swept)] if swept else []),
            ("data set", f"{entry.dataset}, digest {spec['dataset']['digest'][:12]}"),
            ("method", spec["method"]),
            ("begun", date(entry.created)),
            ("test accuracy", f"{output.percent(entry.test_accuracy, 2)} on average"),
            ("size", output.size(entry.bytes)),
            *commands.items(),
        ]
    )
