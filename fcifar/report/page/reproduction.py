"""How to make a result again, on a page: commands, digests, environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcifar.report.page.commands import check_commands, train_command, typed_command
from fcifar.report.page.gathering import Run
from fcifar.report.page.html import Html, commands, facts, folded, join, table, tag
from fcifar.report.page.settings import shown
from fcifar.train import run_dir

_PROMISE = (
    "On the same machine with the same versions it has the same bits, and so the same digest; "
    "elsewhere it has the same draws, and agrees to rounding."
)
_FAST = "It was made with --fast, which promises no bits: it agrees to rounding."
_MAPPED = "It was trained at once with others, and alone agrees to rounding."


def of_run(run: Run) -> Html:
    """Commands that make a run again, and what to compare it with."""
    digest = tag("code", run.report["params_digest"])
    manifest = run_dir.read_checksums(run.path).get(run_dir.MANIFEST)
    return join(
        [
            _train([run]),
            tag("p", "With the run directory at hand, every log point is compared bit for bit:"),
            commands(*check_commands(run.path)),
            facts(
                [
                    ("digest of the parameters", digest),
                    ("data set", _data(run)),
                    *([("manifest's SHA-256", tag("code", manifest))] if manifest else []),
                    *_made(run.manifest),
                ]
            ),
        ]
    )


def of_runs(runs: Sequence[Run]) -> Html:
    """The same for several runs."""
    rows = [(run.name, run.path, tag("code", run.report["params_digest"])) for run in runs]
    data = {run.config.dataset_digest: _data(run) for run in runs}
    return join(
        [
            _train(runs),
            tag("p", "With the run directories at hand, every log point is compared bit for bit:"),
            commands(*(line for run in runs for line in check_commands(run.path)[1:])),
            table("Digests of the parameters", ("", "run", "SHA-256"), rows),
            facts([("data set", each) for each in data.values()]),
        ]
    )


def of_group(path: Path, asked: Mapping[str, Any], runs: Sequence[Run]) -> Html:
    """The same for a group: the command that trained it."""
    typed = typed_command(asked.get("argv"))
    parts = []
    if typed:
        parts = [tag("p", "The command that trained them:"), commands(typed)]
    rows = [(run.path.name, tag("code", run.report["params_digest"])) for run in runs]
    listed = table("Digests of the parameters", ("run", "SHA-256"), rows)
    return join(
        [
            *parts,
            tag("p", "With the directory at hand, every run is made again, and compared:"),
            commands(*check_commands(path)),
            folded(f"Digests of the parameters ({len(rows)})", listed),
            facts([("data set", _data(runs[0])), *_made(asked)]),
        ]
    )


def environment(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    """Where runs were made: what differs among them a column each, then the rest.

    Args:
        manifests: the name of each run, and what its manifest says.
    """
    found = [(name, _flat(values.get("environment", {}))) for name, values in manifests]
    keys = list(dict.fromkeys(key for _, values in found for key in values))
    differing = [key for key in keys if len({values.get(key, "-") for _, values in found}) > 1]
    parts = []
    if differing:
        rows = [(key, *(values.get(key, "-") for _, values in found)) for key in differing]
        parts.append(table("What differs", ("", *(name for name, _ in found)), rows))
    common = [(key, found[0][1][key]) for key in keys if key not in differing]
    title = "In common" if differing else "Environment"
    return join([*parts, table(title, ("", ""), common)])


def _train(runs: Sequence[Run]) -> Html:
    """Command lines with every setting spelt out, and what they promise."""
    lines = [train_command(run.config) for run in runs]
    if not all(lines):
        words = "Its recipe is none of this version of fcifar; the run directory has all of it."
        return tag("p", words)
    notes = [_FAST] if not all(run.config.runtime.deterministic for run in runs) else [_PROMISE]
    if any(run.config.vmap_size for run in runs):
        notes = [_MAPPED]
    each = "This trains it again" if len(runs) == 1 else "These train them again, in their order"
    return join(
        [
            tag("p", f"{each}, with every setting spelt out. {' '.join(notes)}"),
            commands(*(line for line in lines if line)),
        ]
    )


def _data(run: Run) -> Html:
    about = run.manifest["dataset"]
    words = f"{about['name']}, {about['train']:,} + {about['test']:,} images; SHA-256 "
    return join([words, tag("code", about["digest"])])


def _made(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    about = manifest.get("environment", {})
    return [
        ("begun", manifest.get("created", "-")),
        ("commit", tag("code", about.get("git_commit") or "none: an installed package")),
        ("code digest", tag("code", about.get("code", "-"))),
    ]


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    """An environment as names and texts, versions first."""
    skipped = ("versions", "variables", "switches", "git_commit", "code")
    own = {name: value for name, value in environment.items() if name not in skipped}
    values = {
        **environment.get("versions", {}),
        **own,
        **{f"${name}": value for name, value in environment.get("variables", {}).items()},
    }
    return {name.replace("_", " "): "-" if v is None else shown(v) for name, v in values.items()}
