"""What a person sees of a run, or of a group of runs."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fcifar.cli import output

if TYPE_CHECKING:
    from fcifar.runs.listing import Entry

_MEMBERS = 40  # of a group that are shown


def values(entry: "Entry") -> dict[str, Any]:
    return {**entry._asdict(), "path": str(entry.path), "resume": entry.resume}


def what(entry: "Entry") -> str:
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
                **values(entry),
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
            {**values(entry), "runs": [values(m) for m in members], "commands": commands}
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
