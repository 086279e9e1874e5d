"""fcifar train."""

import dataclasses
from pathlib import Path
from typing import Any

from fcifar.cli import options, output, render
from fcifar.cli import training_options as training
from fcifar.cli.overrides import given, refuse_changes, with_changes, with_model
from fcifar.errors import UsageError


@training.with_recipe_options
def train(
    recipe: training.Recipe = None,
    dataset: training.Dataset = None,
    compile: training.Compile = None,
    out: training.Out = None,
    resume: training.Resume = None,
    dropout: training.Dropout = None,
    hidden: training.Hidden = None,
    changes: training.Changes = None,
    replicas: training.Replicas = None,
    sweep: training.Sweep = None,
    replica_method: training.ReplicaMethod = None,
    checkpoint_every: training.CheckpointEvery = None,
    keep_checkpoints: training.KeepCheckpoints = None,
    allow_nonfinite: training.AllowNonfinite = None,
    tensorboard: training.Tensorboard = False,
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
    **overrides: Any,
) -> int:
    """Train a recipe on a data set, evaluate it, and leave a run directory behind.

    [dim]fcifar train --dataset shapes10 --compile
    fcifar train blitz --epochs 4 --seed 1 --device cuda --compile
    fcifar train speed94 --dataset cifar100
    fcifar train blitz --compile --replicas 8 --sweep lr=0.001,0.003[/]
    """
    from fcifar import recipes
    from fcifar.cli import progress, train_sweep
    from fcifar.cli.data import open_dataset
    from fcifar.export import tensorboard as event_files
    from fcifar.report import draw
    from fcifar.train import distributed, loop, run_dir
    from fcifar.train import sweep as sweeps
    from fcifar.train.config import (
        CheckpointConfig,
        check_same_data,
        extend_config,
        make_config,
        read_config,
    )
    from fcifar.train.runtime import make_runtime
    from fcifar.train.signals import catching_signals

    overrides = given(**overrides)
    model = overrides.pop("model", None)
    if "augment" in overrides:
        augment = overrides["augment"]
        overrides["augment"] = () if augment == "none" else tuple(augment.split(","))
    options_of_model = given(dropout=dropout, hidden=hidden)
    where = given(
        device=device,
        threads=threads,
        precision=precision,
        deterministic=deterministic,
    )
    care = given(
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        allow_nonfinite=allow_nonfinite,
    )
    is_group = replicas is not None or bool(sweep)
    if replica_method is not None and not is_group and resume is None:
        raise UsageError("--replica-method is of --replicas and --sweep; give one of them too")
    if tensorboard:
        event_files.check()
    more_epochs = overrides.pop("epochs", None) if resume is not None else None
    if resume is not None:
        refuse_changes(
            overrides
            | options_of_model
            | where
            | given(seed=seed, recipe=recipe, dataset=dataset, out=out, model=model)
            | given(compile=compile, set=changes or None, sweep=sweep or None)
            | given(replicas=replicas, replica_method=replica_method, runs_dir=runs_dir)
        )
    else:
        resume = _restarted(out, is_sweep=is_group)
    if resume is not None:
        run = resume
        tensorboard = tensorboard or _goes_on_with_events(run)
        if run_dir.is_group(run):
            if more_epochs is not None:
                raise UsageError(
                    f"{run} is a group of runs, and --epochs goes on with a run by itself; begin a "
                    "new group with more epochs"
                )
            spec = sweeps.read(run)
            checkpoint = dataclasses.replace(spec.config.checkpoint, **care)
            spec = spec._replace(config=spec.config.replace(checkpoint=checkpoint))
            data = open_dataset(spec.config.dataset, data_dir, quiet=quiet)
            return train_sweep.train(
                run, spec, data, resume=True, json=json, quiet=quiet, tensorboard=tensorboard
            )
        with distributed.main_first("manifest"):  # which it may write
            config = read_config(run)
            data = open_dataset(config.dataset, data_dir, quiet=quiet)
            check_same_data(run, config, data)
            if more_epochs is not None and distributed.is_main():
                config = extend_config(run, config, more_epochs)
        config = config.replace(checkpoint=dataclasses.replace(config.checkpoint, **care))
    else:
        the_recipe = recipes.get(recipe or "blitz")
        overrides["model_options"] = options_of_model
        overrides = with_model(the_recipe, model, overrides)
        the_recipe = with_changes(the_recipe, changes or [], overrides=overrides)
        size = distributed.world_size()
        runtime = make_runtime(
            **where,
            preferred=the_recipe.precision,
            processes=size,
            step_flops=recipes.count_flops(the_recipe) / size,
        )
        if out is not None and runs_dir is not None:
            raise UsageError("--out and --runs-dir both say where the run goes; give one of them")
        root, name = run_dir.runs_root(runs_dir), dataset or "cifar10"
        which = f"seed{recipes.check_seed(seed or 0)}"
        run = out or run_dir.new_run(root, the_recipe.name, name, which)
        if distributed.is_main():
            run_dir.check_free(run)
        data = open_dataset(name, data_dir, quiet=quiet)
        config = make_config(
            the_recipe,
            data,
            seed=seed or 0,
            runtime=runtime,
            compile=the_recipe.compile if compile is None else compile,
            checkpoint=CheckpointConfig(**care),
        )
        if is_group:
            spec = train_sweep.plan(
                config, replicas=replicas, grid=sweep or [], method=replica_method or "auto"
            )
            which = f"{len(spec.trials)}runs"
            run = out or run_dir.new_run(root, the_recipe.name, name, which)
            return train_sweep.train(
                run, spec, data, resume=False, json=json, quiet=quiet, tensorboard=tensorboard
            )
        run = Path(distributed.from_main("run", str(run)))  # the same second on all ranks

    events = run if tensorboard and distributed.is_main() else None
    command = f"{distributed.command(config.runtime.processes)} train --resume {run}"
    try:
        with progress.training(quiet=quiet, events=events) as observe, catching_signals() as stop:
            result = loop.train(
                run, config, data, resume=resume is not None, observe=observe, stop=stop
            )
    except distributed.LostError as error:
        begun = (run / run_dir.MANIFEST).exists()
        raise distributed.LostError(
            f"{error}; resume with: {command}" if begun else error
        ) from error
    if isinstance(result, loop.Interrupted):
        output.note(f"stopped after step {result.step:,}; go on with: {command}")
        if json:
            output.document({"run_dir": str(run), "interrupted": True, "steps": result.step})
        return 128 + (result.signum or 0)
    if not distributed.is_main():
        return 0
    with progress.doing("drawing the figures", quiet=quiet):
        draw.run(run, data)
    if json:
        output.document(result)
    else:
        render.show_report(result)
    return 0


def _restarted(out: Path | None, *, is_sweep: bool) -> Path | None:
    """The run to resume after torchrun has restarted the processes.

    Raises:
        UsageError: nothing says where it would be.
    """
    from fcifar.train import distributed, run_dir

    count, most = distributed.restarts()
    if out is None and (most or (is_sweep and distributed.world_size() > 1)):
        what = "torchrun --max-restarts" if most else "a sweep over several processes"
        raise UsageError(
            f"{what} needs a fixed run directory, which all processes share; add --out"
        )
    begun = out is not None and ((out / run_dir.MANIFEST).exists() or run_dir.is_group(out))
    return out if count and begun else None


def _goes_on_with_events(run: Path) -> bool:
    """Whether a run that is resumed had event files for TensorBoard, and can have more."""
    from fcifar.export import tensorboard

    if not tensorboard.is_begun(run):
        return False
    if not tensorboard.is_installed():
        output.note(f"tensorboard is not installed, so its files in {run} stay as they are")
    return tensorboard.is_installed()
