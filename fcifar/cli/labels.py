"""fcifar labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fcifar.cli import completion, models, options, output, progress
from fcifar.cli.options import argument, option
from fcifar.cli.overrides import given, naming_options, with_changes
from fcifar.errors import UsageError
from fcifar.report import rows

if TYPE_CHECKING:
    from fcifar.data import Dataset
    from fcifar.train.sweep import Sweep

RECIPE, FOLDS = "speed90", 5
_SHOWN, _PAIRS = 20, 10  # images and pairs of classes in the tables


def labels(
    dataset: Annotated[str, argument("DATASET", "See fcifar data list.", completion.datasets)],
    recipe: Annotated[
        str | None,
        option(
            "--recipe", "See fcifar recipes.", "NAME", RECIPE, autocompletion=completion.recipes
        ),
    ] = None,
    folds: Annotated[int | None, option("--folds", "How many models.", None, str(FOLDS))] = None,
    epochs: Annotated[
        int | None, option("--epochs", "Of each model.", None, "the recipe's")
    ] = None,
    changes: Annotated[
        list[str] | None,
        option("--set", "Another setting of the recipe, or option of its model.", "NAME=VALUE"),
    ] = None,
    group: Annotated[
        Path | None,
        options.path_option(
            "--group",
            "Where the models are, or go; finished ones are used again.",
            "DIR",
            "in --runs-dir, named by the settings",
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        option(
            "--runs",
            "Use these runs instead, or groups of them; several seeds are averaged.",
            "RUN",
            callback=options.locate_runs,
            autocompletion=completion.runs,
        ),
    ] = None,
    average: models.Average = False,
    filter_by: Annotated[
        str,
        option(
            "--filter",
            "Which images to suspect: prune_by_noise_rate, prune_by_class, both, "
            "confident_learning or predicted_neq_given.",
            "NAME",
        ),
    ] = "prune_by_noise_rate",
    rank_by: Annotated[
        str,
        option("--rank", "What orders them: self_confidence or normalized_margin.", "NAME"),
    ] = "self_confidence",
    out: Annotated[
        Path | None, option("--out", "A folder for sheet.png, labels.csv and report.json.")
    ] = None,
    to: Annotated[
        str | None, option("--to", "Prepare a data set of that name without them.", "NAME")
    ] = None,
    force: Annotated[bool, option("--force", "Overwrite a data set of that name.")] = False,
    compile: Annotated[
        bool | None,
        option(
            "--compile/--no-compile", "Compile the step; by default, if that pays.", None, "auto"
        ),
    ] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Find training images whose labels are likely to be wrong, by confident learning.

    Trains a model for each of 5 folds, on the others, so that each image is
    predicted by a model that was not trained on it. Filters and ranks are those
    of cleanlab. Called again, it resumes an interrupted training, and uses
    finished models. --runs takes any runs that held out training images, and
    examines those. Look at the images before you drop them: correct ones that are
    hard are suspected, too.

    [dim]fcifar labels shapes10 --recipe blitz
    fcifar labels cifar10 --out suspects/ --to cifar10-clean
    fcifar train blitz --sweep fold=1/3,2/3,3/3 --replicas 2 --out folds
    fcifar labels cifar10 --runs folds[/]
    """
    from fcifar import tree
    from fcifar.analysis import label_errors
    from fcifar.cli.data import begin_to_read, open_dataset
    from fcifar.data import data_root, save
    from fcifar.data.readers import check_free
    from fcifar.export import tables
    from fcifar.io import finite, write_json
    from fcifar.recipes.checks import check_choice
    from fcifar.report import draw
    from fcifar.runs import folds as cross_validation
    from fcifar.runs import inference
    from fcifar.train import loop, sweep
    from fcifar.train.runtime import make_runtime

    check_choice("--filter", filter_by, label_errors.FILTERS)
    check_choice("--rank", rank_by, label_errors.RANKINGS)
    where = given(device=device, threads=threads, precision=precision, deterministic=deterministic)
    settings = given(recipe=recipe, folds=folds, epochs=epochs, seed=seed, compile=compile)
    settings |= given(set=changes or None)
    if to is not None:
        check_free(to, data_root(data_dir), force)
        if to == dataset:
            raise UsageError(f"--to is {to}, the data set itself; choose another name")
    elif force:
        raise UsageError("--force is of --to; give both")
    if runs and (settings or group is not None):
        names = [f"--{name}" for name in (*settings, *(["group"] if group is not None else []))]
        raise UsageError(
            f"--runs are trained already, and {', '.join(names)} would train; give one or the other"
        )
    begin_to_read(dataset, data_dir)
    data = open_dataset(dataset, data_dir, quiet=quiet)
    if runs:
        paths = sweep.expand(runs)
    else:
        path, spec = _plan(data, settings, where, group, runs_dir)
        outcome = _train(path, spec, data, quiet=quiet)
        if isinstance(outcome, loop.Interrupted):
            again = f"fcifar labels {dataset} --group {path}"
            output.note(f"stopped after step {outcome.step:,} of a fold; continue with: {again}")
            if json:
                output.document({"run_dir": str(path), "interrupted": True})
            return 128 + (outcome.signum or 0)
        paths = sweep.finished(path)
    trained = [inference.load(path, average=average) for path in paths]
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=trained[0].recipe.precision,
        deterministic=deterministic,
    )
    with progress.counting(quiet=quiet) as count:
        held_out = cross_validation.predict(paths, trained, runtime, data, count)
    found = cross_validation.find(data, held_out, filter_by, rank_by)
    result = {
        "recipe": trained[0].recipe.name,
        "runs": list(map(str, paths)),
        "params_digests": [tree.digest(model.variables.params) for model in trained],
        **cross_validation.summarize(data, held_out, found, filter_by, rank_by),
    }
    how = f"fcifar labels: {len(paths)} runs of {result['recipe']}, {filter_by}"
    if to is not None:
        clean = cross_validation.without(data, found.rows, to, how)
        file = save(clean, data_root(data_dir))
        left = {"train": len(clean.train_labels), "digest": clean.digest}
        result["written"] = {"name": to, "path": str(file), **left}
    if out is not None:
        write_json(out / "report.json", result)
        tables.write(out / "labels.csv", cross_validation.tabulate(result))
        with progress.doing("drawing the sheet", quiet=quiet):
            draw.label_errors(out, data, result)
    output.result(finite(result), _show, json)
    return 0


def _plan(
    data: "Dataset",
    settings: dict[str, Any],
    where: dict[str, Any],
    group: Path | None,
    runs_dir: Path | None,
) -> "tuple[Path, Sweep]":
    """Return the directory of the folds and their sweep, a new or an existing one.

    Raise a UsageError if an existing one does not have the settings that were given.
    """
    from fcifar import recipes
    from fcifar.recipes.checks import check_seed
    from fcifar.runs import folds as cross_validation
    from fcifar.train import config, programs, run_dir, sweep
    from fcifar.train.runtime import make_runtime

    path = group
    if path is not None and run_dir.is_group(path) and not settings:
        spec = sweep.read(path)
        config.check_same_data(path, spec.config, data)
        return path, spec
    with naming_options(settings.get("set")):
        base = recipes.get(settings.get("recipe", RECIPE))
        overrides = given(epochs=settings.get("epochs"))
        base = with_changes(base, settings.get("set", []), overrides=overrides)
    count, seed = settings.get("folds", FOLDS), check_seed(settings.get("seed", 0))
    flops = recipes.count_flops(base)
    where.setdefault("device", "auto")
    runtime = make_runtime(**where, preferred=base.precision, step_flops=flops)
    is_compiled = settings.get("compile", base.compile)
    if "compile" not in settings and not base.compile:
        steps = count * base.epochs * recipes.steps_per_epoch(base, len(data.train_labels))
        is_compiled, _ = programs.choose(runtime.device, steps, flops)
    made = config.make_config(base, data, seed=seed, runtime=runtime, compile=is_compiled)
    spec = cross_validation.make_sweep(made, count)
    if path is None:
        name = f"{base.name}-{data.name}-{count}folds-seed{seed}"
        path = run_dir.runs_root(runs_dir) / name
    if not run_dir.is_group(path):
        run_dir.check_free(path)
        return path, spec
    there = sweep.read(path)
    config.check_same_data(path, there.config, data)
    if there.trials != spec.trials:
        raise UsageError(
            f"{path} has {_difference(there, spec)} as given; give --group another folder, or the "
            "same settings"
        )
    return path, there


def _difference(there: "Sweep", spec: "Sweep") -> str:
    """Say how a group differs from the one that was given."""
    from fcifar import recipes

    if len(there.trials) != len(spec.trials):
        return f"{len(there.trials)} runs, not {len(spec.trials)}"
    one, other = there.trials[0], spec.trials[0]
    if one.seed != other.seed:
        return f"seed {one.seed}, not {other.seed}"
    then, now = recipes.to_dict(one.recipe), recipes.to_dict(other.recipe)
    name = next((name for name in then if then[name] != now[name]), "other folds")
    return f"{name} {then.get(name)}, not {now.get(name)}"


def _train(path: Path, spec: "Sweep", data: "Dataset", *, quiet: bool) -> Any:
    """Train the folds that are not finished; return the summary, or ``Interrupted``."""
    from fcifar.report import draw
    from fcifar.train import loop, run_dir, sweep
    from fcifar.train.signals import catching_signals

    begun = run_dir.is_group(path)
    if begun and (path / run_dir.SUMMARY).exists():
        return run_dir.read_report(path, run_dir.SUMMARY)
    with progress.training(quiet=quiet) as show, catching_signals() as stop:
        result = sweep.train(path, spec, data, resume=begun, observe=show, stop=stop)
    if not isinstance(result, loop.Interrupted):
        with progress.doing("drawing the figures", quiet=quiet):
            draw.group(path)
    return result


def _show(result: dict[str, Any]) -> None:
    images, pairs = result["images"], result["pairs"]
    if images:
        output.table(*rows.suspects(images[:_SHOWN]))
        _show_rest(len(images) - _SHOWN, "image")
        output.stdout.print()
    if pairs:
        output.table(*rows.suspect_pairs(pairs[:_PAIRS]))
        _show_rest(len(pairs) - _PAIRS, "pair")
        output.stdout.print()
    facts = [
        *rows.suspect_facts(result),
        ("models", f"{len(result['runs'])} of {result['recipe']}, {result['runs'][0]} ..."),
    ]
    if written := result.get("written"):
        about = f"{written['name']}: {written['train']:,} training images"
        facts += [("written", about), ("digest", written["digest"])]
    output.facts(facts)


def _show_rest(number: int, what: str) -> None:
    if number > 0:
        output.line(f"... and {output.count(number, what)} more in --json and --out")
