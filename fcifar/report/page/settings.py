"""The settings of runs on a page, and the commands that reproduce them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcifar import recipes
from fcifar.recipes.recipe import TEXTS, option_name
from fcifar.report.page.blocks import Commands, Facts, Folded, Pair, Table, Text, code
from fcifar.report.page.reading import Run
from fcifar.report.text import shown
from fcifar.train import run_dir
from fcifar.train.config import RunConfig

_LISTS = ("augment", "resolutions")
_WORD = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_ITEM = re.compile(r"[\w.:+-]+", re.ASCII)
_NOT_TEXT = {"true", "false", "null", "none", "NaN", "Infinity"}  # as YAML and JSON read them
_EXACT = (
    "On the same machine with the same versions the result has the same bits, and so the same "
    "digest; elsewhere the random draws are equal and results agree to rounding."
)
_FAST = "The run used --fast, which is not bit-for-bit reproducible: results agree to rounding."
_VMAP = "The run was trained with others by vmap; trained alone, results agree to rounding."


# Settings ----------------------------------------------------------------------------------------


def of_run(run: Run) -> list[Any]:
    """The settings of one run: changes to the recipe first, then all."""
    runtime = Table("The run", ("", ""), list(_runtime(run.config).items()))
    return [Pair([_changed(run.config, ()), runtime]), _all(_values(run.config))]


def of_runs(runs: Sequence[Run]) -> list[Any]:
    """The settings of several runs: what differs, what they all changed, then all they share."""
    values = [
        {"recipe": run.config.recipe.name, **_values(run.config), **_runtime(run.config)}
        for run in runs
    ]
    names = dict.fromkeys(name for each in values for name in each)
    differing = [name for name in names if len({shown(v.get(name, "-")) for v in values}) > 1]
    blocks: list[Any] = [Text("No setting differs among these runs.")]
    if differing:
        rows = [(name, *(shown(each.get(name, "-")) for each in values)) for name in differing]
        blocks = [Table("Settings that differ", ("setting", *(run.name for run in runs)), rows)]
    changed = dict.fromkeys(name for run in runs for name in _changes(run.config) or ())
    common = [(name, shown(values[0][name])) for name in changed if name not in differing]
    if common:
        blocks.append(Table("Changed from the recipe in all of them", ("setting", "here"), common))
    shared = {name: value for name, value in values[0].items() if name not in differing}
    return [Pair(blocks), _all(shared, "All settings in common")]


def of_group(runs: Sequence[Run], swept: Sequence[str]) -> list[Any]:
    """The settings of a group: those of its first run, without the swept values."""
    config = runs[0].config
    seeds = ", ".join(map(str, sorted({run.config.seed for run in runs})))
    runtime = Table("The runs", ("", ""), list({**_runtime(config), "seed": seeds}.items()))
    values = {k: v for k, v in _values(config).items() if option_name(k) not in swept}
    return [Pair([_changed(config, swept), runtime]), _all(values)]


def _changed(config: RunConfig, swept: Sequence[str]) -> Table | Text:
    name, changes = config.recipe.name, _changes(config)
    if changes is None:
        return Text(f"This version of fcifar has no recipe {name}.")
    rows = [
        (k, shown(now), shown(then))
        for k, (then, now) in changes.items()
        if option_name(k) not in swept
    ]
    if not rows:
        return Text(f"Every setting is that of the recipe {name}.")
    return Table(f"Changed from the recipe {name}", ("setting", "here", "recipe"), rows)


def _changes(config: RunConfig) -> dict[str, list[Any]] | None:
    """``recipes.changes`` of a run, with the options of the model as settings."""
    changes = recipes.changes({**recipes.to_dict(config.recipe), **_ran(config)})
    if changes is None:
        return None
    then, now = changes.pop("model_options", [{}, {}])
    options = {name: [then.get(name, "-"), value] for name, value in now.items()}
    return {name: both for name, both in {**options, **changes}.items() if both[0] != both[1]}


def _values(config: RunConfig) -> dict[str, Any]:
    return {**_flat(recipes.to_dict(config.recipe)), **_ran(config)}


def _ran(config: RunConfig) -> dict[str, Any]:
    """Precision and compiling of the run, which the command line may have changed."""
    return {"precision": config.runtime.precision, "compile": config.compile}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in values.items() if k not in ("name", "model_options", *TEXTS)}
    return {"model": own.pop("model"), **values["model_options"], **own}


def _runtime(config: RunConfig) -> dict[str, Any]:
    runtime = config.runtime
    return {
        "data set": config.dataset,
        "seed": config.seed,
        "device": runtime.device,
        "threads": runtime.threads,
        "deterministic": shown(runtime.deterministic),
        **({"vmap": f"{config.vmap_size} runs at once"} if config.vmap_size else {}),
    }


def _all(values: Mapping[str, Any], heading: str = "All settings") -> Folded:
    rows = [(name, shown(value)) for name, value in values.items()]
    return Folded(f"{heading} ({len(rows)})", [Table(heading, ("setting", "value"), rows)])


# Reproduction ------------------------------------------------------------------------------------


def reproduce_run(run: Run) -> list[Any]:
    """Commands that reproduce a run, and what to compare the result with."""
    manifest = run_dir.read_checksums(run.path).get(run_dir.MANIFEST)
    facts = [
        ("digest of the parameters", code(run.report["params_digest"])),
        ("data set", _dataset(run)),
        *([("manifest's SHA-256", code(manifest))] if manifest else []),
        *_origin(run.manifest),
    ]
    return [
        *_train([run]),
        Text("With the run directory, every log point is compared bit for bit:"),
        Commands(_checks(run.path)),
        Facts(facts),
    ]


def reproduce_runs(runs: Sequence[Run]) -> list[Any]:
    """Commands that reproduce several runs."""
    rows = [(run.name, run.path, code(run.report["params_digest"])) for run in runs]
    datasets = {run.config.dataset_digest: _dataset(run) for run in runs}
    return [
        *_train(runs),
        Text("With the run directories, every log point is compared bit for bit:"),
        Commands([_checks(run.path)[-1] for run in runs]),
        Table("Digests of the parameters", ("", "run", "SHA-256"), rows),
        Facts([("data set", each) for each in datasets.values()]),
    ]


def reproduce_group(path: Path, manifest: Mapping[str, Any], runs: Sequence[Run]) -> list[Any]:
    """Commands that reproduce a group."""
    typed = typed_command(manifest.get("argv"))
    rows = [(run.path.name, code(run.report["params_digest"])) for run in runs]
    digests = Table("Digests of the parameters", ("run", "SHA-256"), rows)
    return [
        *([Text("The command that trained them:"), Commands([typed])] if typed else []),
        Text("With the directory, every run is trained again and compared:"),
        Commands(_checks(path)),
        Folded(f"Digests of the parameters ({len(rows)})", [digests]),
        Facts([("data set", _dataset(runs[0])), *_origin(manifest)]),
    ]


def environment(manifests: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Where runs were made: what differs, a column for each, then the rest.

    Args:
        manifests: by the name of the run.
    """
    found = {name: _environment(each.get("environment", {})) for name, each in manifests.items()}
    first = next(iter(found.values()))
    names = dict.fromkeys(name for values in found.values() for name in values)
    differing = [n for n in names if len({values.get(n, "-") for values in found.values()}) > 1]
    common = [(name, first[name]) for name in names if name not in differing]
    if not differing:
        return [Table("Environment", ("", ""), common)]
    rows = [(name, *(values.get(name, "-") for values in found.values())) for name in differing]
    return [Table("Differences", ("", *found), rows), Table("In common", ("", ""), common)]


def train_command(config: RunConfig) -> str | None:
    """Return a command line that trains with the same settings, independent of defaults.

    None if no command can: for a user's recipe, or a model option that a command cannot set.
    """
    recipe, runtime = config.recipe, config.runtime
    changes = _set_arguments(recipe) if recipe.name in recipes.RECIPES else None
    if changes is None:
        return None
    words = ["fcifar", "train", recipe.name, "--dataset", config.dataset]
    for change in changes:
        words += ["--set", change]
    words += ["--seed", str(config.seed), "--threads", str(runtime.threads)]
    words += ["--precision", runtime.precision, "--device", runtime.device]
    words.append("--deterministic" if runtime.deterministic else "--fast")
    words.append("--compile" if config.compile else "--no-compile")
    return shlex.join(words)


def typed_command(argv: Any) -> str | None:
    """Return the command line in a manifest; None unless it is ``fcifar train``."""
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        return None
    return shlex.join(["fcifar", *argv[1:]]) if argv[1:2] == ["train"] else None


def _set_arguments(recipe: recipes.Recipe) -> list[str] | None:
    """Arguments of ``--set`` that make a recipe of the shipped one; None if there are none."""
    changes = recipes.changes(recipes.to_dict(recipe)) or {}
    base = recipes.RECIPES[recipe.name].model_options if "model" not in changes else {}
    options = recipe.model_options
    differing = [name for name in options if name not in base or options[name] != base[name]]
    # --set cannot remove an option, nor reach one with the name of a value of the recipe.
    if set(base) - set(options) or set(differing) & set(recipes.to_dict(recipe)):
        return None
    changes.pop("model_options", None)
    found = {
        **{name: now for name, (_, now) in changes.items()},
        **{n: options[n] for n in differing},
    }
    return [f"{name}={_argument(name, value)}" for name, value in found.items()]


def _argument(name: str, value: Any) -> str:
    """A value as ``--set`` reads it."""
    if name in _LISTS:
        plain = all(_ITEM.fullmatch(str(item)) for item in value)
        return (",".join(value) or "none") if plain else json.dumps(list(value))
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in _NOT_TEXT:
        return value
    return json.dumps(value, separators=(",", ":"))


def _train(runs: Sequence[Run]) -> list[Any]:
    lines = [line for run in runs if (line := train_command(run.config))]
    if len(lines) < len(runs):
        return [Text("This version of fcifar does not have the recipe; the run directory has it.")]
    note = _EXACT if all(run.config.runtime.deterministic for run in runs) else _FAST
    if any(run.config.vmap_size for run in runs):
        note = _VMAP
    verb = "This command trains it again" if len(runs) == 1 else "These commands train them again"
    return [Text(f"{verb}, with every setting given. {note}"), Commands(lines)]


def _checks(path: Path) -> list[str]:
    return [shlex.join(["fcifar", command, str(path)]) for command in ("verify", "reproduce")]


def _dataset(run: Run) -> Any:
    from markupsafe import Markup

    about = run.manifest["dataset"]
    words = f"{about['name']}, {about['train']:,} + {about['test']:,} images; SHA-256 "
    return Markup("{}{}").format(words, code(about["digest"]))


def _origin(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    about = manifest.get("environment", {})
    return [
        ("started", manifest.get("created", "-")),
        ("commit", code(about.get("git_commit") or "none: an installed package")),
        ("code digest", code(about.get("code", "-"))),
    ]


def _environment(about: Mapping[str, Any]) -> dict[str, str]:
    """An environment as names and texts, versions first."""
    separate = ("versions", "variables", "switches", "git_commit", "code")
    values = {
        **about.get("versions", {}),
        **{name: value for name, value in about.items() if name not in separate},
        **{f"${name}": value for name, value in about.get("variables", {}).items()},
    }
    return {name.replace("_", " "): "-" if v is None else shown(v) for name, v in values.items()}
