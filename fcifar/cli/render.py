"""Results and run directories as text for a terminal."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fcifar.cli import output

if TYPE_CHECKING:
    from fcifar.analysis.score_tables import Examined
    from fcifar.runs.listing import Entry

_MEMBERS = 40  # rows shown of a table of runs
_HARDEST = 5  # images


# The report of a run ------------------------------------------------------------------------------


def _chosen(report: dict[str, Any]) -> str:
    selected, steps = report["selected"], report["steps"]
    stopped = f"; stopped early after step {steps:,}" if report["stopped_early"] else ""
    if "valid_loss" not in selected:
        return f"of the last step, {steps:,}{stopped}"
    loss = selected["valid_loss"]
    # Reports of earlier versions do not have the number.
    count = f" of {report['valid_n']:,} images" if report.get("valid_n") else ""
    return f"of step {selected['step']:,}, chosen by validation loss {loss:.4f}{count}{stopped}"


def show_report(report: dict[str, Any]) -> None:
    """Print a run's report."""
    low, high = report["interval95"]
    output.class_table(report["per_class"])
    output.stdout.print()
    output.facts(
        [
            (
                "test accuracy",
                f"{output.percent(report['test_accuracy'], 2)} of {report['test_n']:,} "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
            ),
            *tta_facts(report),
            ("test loss", f"{report['test_loss']:.4f}"),
            ("calibration", output.calibration(report)),
            ("mistakes", output.confusions(report) or "none"),
            ("model", _chosen(report)),
            (
                "training",
                f"{report['steps']:,} steps in {report['train_seconds']:.1f} s, "
                f"{report['images_per_second']:,.0f} images/s",
            ),
            ("compiling", f"{report['compile_seconds']:.1f} s"),
            (
                "timings",
                f"{report['convention_seconds']:.1f} s by the field's convention, "
                f"{report['process_seconds']:.1f} s from the start of the process",
            ),
            ("run", report["run_dir"]),
            ("digest", report["params_digest"]),
        ]
    )


def tta_facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The line of a figure with test-time augmentation, if there is one."""
    if "tta" not in report:
        return []
    low, high = report["tta_interval95"]
    return [
        (
            f"with --tta {report['tta']}",
            f"{output.percent(report['tta_accuracy'], 2)} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        )
    ]


# Per-example scores, and several models -----------------------------------------------------------


def ensemble_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on several networks, if there are several."""
    if "networks" not in result:
        return []
    networks = result["networks"]
    low, high = networks["interval95"]
    return [
        (
            f"{networks['replicas']} models",
            f"{output.percent(networks['mean_accuracy'], 2)} on average "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        ),
        (
            "together",
            f"{output.percent(networks['ensemble_accuracy'], 2)} by their mean probabilities; "
            f"{output.percent(networks['mean_disagreement'])} of pairs disagree on an image",
        ),
        ("spread", _spread(networks)),
    ]


def _spread(figures: dict[str, Any]) -> str:
    own = figures["std_distribution"]
    return (
        f"{100 * figures['min_accuracy']:.2f} to {100 * figures['max_accuracy']:.2f} %, std "
        f"{100 * figures['std_accuracy']:.2f} points; independent errors alone give "
        f"{100 * figures['std_independent']:.2f}, and "
        + (f"the models' own is {100 * own:.2f}" if own > 0 else "no more than that is seen")
    )


def show_hardest(examined: "Examined", classes: Sequence[str], written: dict[str, Any]) -> None:
    """Print where the scores are, and the hardest examples."""
    from fcifar.analysis import score_tables

    together = examined.together
    answers = examined.scores if together is None else together
    losses = examined.scores.loss if together is None else together.mean_loss
    rows = score_tables.hardest(examined)[:_HARDEST].tolist()
    output.stdout.print()
    output.table(
        ("hardest", "class", "predicted", "loss", *(() if together is None else ("wrong",))),
        [
            (
                examined.names[row],
                classes[int(examined.labels[row])],
                classes[int(answers.prediction[row])],
                f"{losses[row].item():.2f}",
                *(() if together is None else (output.percent(together.error_rate[row].item()),)),
            )
            for row in rows
        ],
    )
    output.stdout.print()
    count = f"{output.count(written['rows'], 'image')}, {len(written['columns'])} columns"
    output.facts([("written", f"{written['file']}: {count}")])


# The summary of a sweep ---------------------------------------------------------------------------


def show_sweep(summary: dict[str, Any]) -> None:
    """Print what a group came to."""
    if len(summary["cells"]) > 1:
        _show_cells(summary)
    else:
        _show_members(summary["members"])
    output.stdout.print()
    facts = [
        fact
        for cell in summary["cells"]
        if cell["together"] and len(summary["cells"]) == 1
        for fact in _of_replicas(cell)
    ]
    failed = [member for member in summary["members"] if "failed" in member]
    facts += [("failed", f"{member['name']}: {member['failed']}") for member in failed]
    if len(summary["cells"]) > 1:
        facts.append(("best", _best(summary)))
    how = "one after another" if summary["method"] == "loop" else "all at once, by vmap"
    facts += [
        (
            "training",
            f"{output.count(len(summary['members']), 'run')}, {how}: "
            f"{summary['train_seconds']:.1f} s",
        ),
        ("compiling", f"{summary['compile_seconds']:.1f} s"),
        ("process", f"{summary['process_seconds']:.1f} s from its start"),
        ("runs", summary["run_dir"]),
    ]
    output.facts(facts)


def _of_replicas(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """What several networks of one recipe say together."""
    together = cell["together"]
    low, high = (output.percent(value, 2) for value in together["interval95"])
    real = together["std_distribution"]
    rest = (
        f", and {100 * real:.2f} is real difference between the models"
        if real > 0
        else "; more than was seen, so no real difference between the models shows"
    )
    facts = [
        (
            "test accuracy",
            f"{output.percent(together['mean_accuracy'], 2)} on average over "
            f"{together['replicas']} seeds, 95 % interval {low} to {high}",
        ),
        (
            "spread",
            f"standard deviation {100 * together['std_accuracy']:.2f} points, from "
            f"{output.percent(together['min_accuracy'], 2)} to "
            f"{output.percent(together['max_accuracy'], 2)}",
        ),
        (
            "of that",
            f"{100 * together['std_independent']:.2f} is what independent errors on "
            f"{together['n']:,} images give{rest}",
        ),
        ("ensemble", f"{output.percent(together['ensemble_accuracy'], 2)}, of mean probabilities"),
        (
            "disagreement",
            f"two models differ on {output.percent(together['mean_disagreement'])} of the images",
        ),
    ]
    if cell["tta_accuracy"]:
        tta = cell["tta_accuracy"]
        facts.insert(
            1, ("with --tta", f"{output.percent(tta['mean'], 2)}, deviation {100 * tta['std']:.2f}")
        )
    return facts


def _show_members(members: Sequence[dict[str, Any]]) -> None:
    output.table(
        ("run", "test accuracy", "test loss", "training"),
        [
            (member["name"], "failed", "-", "-")
            if "failed" in member
            else (
                member["name"],
                output.percent(member["test_accuracy"], 2),
                f"{member['test_loss']:.4f}",
                f"{member['train_seconds']:.1f} s",
            )
            for member in members[:_MEMBERS]
        ],
    )
    _say_more(len(members), "run")


def _show_cells(summary: dict[str, Any]) -> None:
    output.table(
        (*summary["swept"], "validation", "test", "test loss", "runs"),
        [
            (
                *map(str, cell["changes"].values()),
                _mean(cell["valid_accuracy"]),
                _mean(cell["test_accuracy"]),
                f"{cell['test_loss']['mean']:.4f}" if cell["test_loss"] else "-",
                str(len(cell["runs"])) + (f", {cell['failed']} failed" if cell["failed"] else ""),
            )
            for cell in summary["cells"][:_MEMBERS]
        ],
    )
    _say_more(len(summary["cells"]), "cell")


def _say_more(number: int, what: str) -> None:
    if number > _MEMBERS:
        output.line(f"... and {output.count(number - _MEMBERS, what)} more in the summary")


def _mean(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "-"
    mean = output.percent(figures["mean"], 2)
    return mean if figures["n"] == 1 else f"{mean} ±{100 * figures['std']:.2f}"


def _best(summary: dict[str, Any]) -> str:
    if summary["best"] is None:
        return "not chosen, for no images were held out to choose by; give --valid-fraction 0.1"
    (cell,) = [cell for cell in summary["cells"] if cell["name"] == summary["best"]]
    accuracy = output.percent(cell["valid_accuracy"]["mean"], 2)
    return f"{summary['best']}, by its accuracy on validation images, {accuracy}"


# Run directories ----------------------------------------------------------------------------------


def entry_values(entry: "Entry") -> dict[str, Any]:
    return {**entry._asdict(), "path": str(entry.path), "resume": entry.resume}


def entry_summary(entry: "Entry") -> str:
    if not entry.recipe:
        return ""
    about = "" if entry.state == "finished" and not entry.members else f"; {entry.about}"
    return f"{entry.recipe} on {entry.dataset}, seed {entry.seed}{about}"


def date(created: str) -> str:
    """In this machine's time, to the minute."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return created or "-"


def show_run(entry: "Entry", json: bool) -> None:
    from fcifar.train import run_dir

    manifest = run_dir.read_manifest(entry.path)
    report = run_dir.read_report(entry.path) if entry.state == "finished" else None
    changes = _changes(manifest["recipe"])
    commands = _commands(entry)
    if json:
        output.document(
            {
                **entry_values(entry),
                "changes": changes,
                "commands": commands,
                "manifest": manifest,
                "report": report,
            }
        )
        return
    output.facts(
        [
            ("run", entry.path),
            ("state", f"{entry.state}, {entry.about}"),
            ("recipe", entry.recipe),
            *[("" if i else "changed", text) for i, text in enumerate(_in_words(changes))],
            *_asked(manifest),
            ("begun", date(entry.created)),
            *(_figures(report) if report else []),
            ("size", output.size(entry.bytes)),
            *commands.items(),
        ]
    )


def _asked(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    runtime, data, about = (manifest[name] for name in ("runtime", "dataset", "environment"))
    how = "compiled" if manifest["compile"] else "eager"
    exact = "deterministic" if runtime["deterministic"] else "fast"
    return [
        (
            "data set",
            f"{data['name']}, {data['train']:,} + {data['test']:,} images of "
            f"{output.count(len(data['classes']), 'class', 'classes')}, "
            f"digest {data['digest'][:12]}",
        ),
        *(
            [("validation", f"{data['valid']:,} images that the data set has besides")]
            if manifest["recipe"].get("valid") == "given"
            else []
        ),
        ("seed", str(manifest["seed"])),
        (
            "computed",
            f"{runtime['device']}, {output.count(runtime['threads'], 'thread')}, "
            f"{runtime['precision']}, {how}, {exact}",
        ),
        (
            "versions",
            f"fcifar {about['versions']['fcifar']}, torch {about['versions']['torch']}",
        ),
    ]


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    low, high = report["interval95"]
    pairs = [
        (
            "test accuracy",
            f"{output.percent(report['test_accuracy'], 2)} of {report['test_n']:,} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        ),
        ("test loss", output.number(report["test_loss"])),
        (
            "training",
            f"{report['steps']:,} steps in {report['train_seconds']:.1f} s, "
            f"{report['images_per_second']:,.0f} images/s",
        ),
        ("digest", report["params_digest"]),
    ]
    if "tta" in report:
        pairs.insert(1, (f"with --tta {report['tta']}", output.percent(report["tta_accuracy"], 2)))
    return pairs


def _changes(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is different from the recipe of that name: value there, value here. None: no such."""
    import json

    from fcifar.recipes import RECIPES, to_dict

    if recipe["name"] not in RECIPES:
        return None
    named = json.loads(json.dumps(to_dict(RECIPES[recipe["name"]])))
    return {
        name: [named.get(name), value]
        for name, value in recipe.items()
        if named.get(name) != value and name not in ("summary", "source", "notes", "expected")
    }


def _in_words(changes: Mapping[str, Any] | None) -> list[str]:
    if changes is None:
        return ["this fcifar has no recipe of that name"]
    if not changes:
        return ["nothing"]
    return [f"{name} {now}, not {then}" for name, (then, now) in changes.items()]


def _commands(entry: "Entry") -> dict[str, str]:
    if entry.resume:
        return {"go on": entry.resume}
    if entry.state != "finished":
        return {}
    return {
        "check": f"fcifar verify {entry.path}",
        "reproduce": f"fcifar reproduce {entry.path}",
    }


def show_group(entry: "Entry", json: bool) -> None:
    from fcifar.runs import listing
    from fcifar.train import run_dir

    spec = run_dir.read_manifest(entry.path, run_dir.SWEEP)
    members = list(listing.members(entry.path))
    commands = _commands(entry)
    if json:
        output.document(
            {
                **entry_values(entry),
                "runs": [entry_values(m) for m in members],
                "commands": commands,
            }
        )
        return
    output.table(
        ("run", "state", "", "test", "size"),
        [
            (m.name, m.state, m.about, output.percent(m.test_accuracy, 2), output.size(m.bytes))
            for m in members[:_MEMBERS]
        ],
    )
    if len(members) > _MEMBERS:
        output.line(f"... and {output.count(len(members) - _MEMBERS, 'run')} more; --json has all")
    output.stdout.print()
    swept = {name: None for m in spec["members"] for name in m["changes"]}
    output.facts(
        [
            ("group", entry.path),
            ("state", f"{entry.state}, {entry.about}"),
            ("recipe", entry.recipe),
            *([("swept", ", ".join(swept))] if swept else []),
            ("data set", f"{entry.dataset}, digest {spec['dataset']['digest'][:12]}"),
            ("method", spec["method"]),
            ("begun", date(entry.created)),
            ("test accuracy", f"{output.percent(entry.test_accuracy, 2)} on average"),
            ("size", output.size(entry.bytes)),
            *commands.items(),
        ]
    )
