"""fcifar train."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, options, output, processes, trained
from fcifar.cli.overrides import given, refuse_changes, with_changes, with_model
from fcifar.errors import UserError

_RECIPE = "Instead of what the recipe says"
_LENGTH, _DESCENT, _IMAGES = (f"{_RECIPE}: {what}" for what in ("length", "optimizer", "images"))
_PANELS = {
    **dict.fromkeys(("--batch-size", "--drop-last/--keep-last", "--log-every"), _LENGTH),
    **dict.fromkeys(
        (
            *("--optimizer", "--momentum", "--nesterov/--no-nesterov", "--weight-decay"),
            *("--clip-norm", "--dp-clip", "--dp-noise", "--schedule", "--warmup-steps"),
        ),
        _DESCENT,
    ),
    **dict.fromkeys(
        (
            *("--augment", "--tta", "--valid-fraction", "--stratify/--no-stratify"),
            *("--patience", "--restore-best/--keep-last-epoch"),
        ),
        _IMAGES,
    ),
}
_SAFETY = "How to keep the run safe"
_MANY = "Many at once"


def _override(name: str, help: str) -> Any:
    return typer.Option(
        name, help=help, show_default=False, rich_help_panel=_PANELS.get(name, _RECIPE)
    )


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="See fcifar recipes; or MODULE:RECIPE.",
            show_default="blitz",
            autocompletion=completion.recipes,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="See fcifar data list.",
            show_default="cifar10",
            autocompletion=completion.datasets,
        ),
    ] = None,
    model: Annotated[
        str | None,
        _override("--model", "See fcifar recipes parts; or MODULE:FACTORY, a network of yours."),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Train through torch.compile: seconds to start, then fast.",
            show_default="the recipe's",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The run directory.",
            callback=options.in_utf8,
            show_default="a new one in --runs-dir",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Continue the interrupted run in this directory."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            "--max-epochs",
            help="Passes over the training images.",
            show_default=False,
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    batch_size: Annotated[int | None, _override("--batch-size", "Images a step.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--lr",
            "--learning-rate",
            help="Peak learning rate.",
            show_default=False,
            rich_help_panel=_DESCENT,
        ),
    ] = None,
    optimizer: Annotated[str | None, _override("--optimizer", "sgd, adam or adamw.")] = None,
    momentum: Annotated[float | None, _override("--momentum", "Of sgd, in [0, 1).")] = None,
    nesterov: Annotated[
        bool | None, _override("--nesterov/--no-nesterov", "Nesterov's form of momentum.")
    ] = None,
    weight_decay: Annotated[
        float | None, _override("--weight-decay", "L2 penalty; decoupled for adamw.")
    ] = None,
    clip_norm: Annotated[
        float | None, _override("--clip-norm", "Largest gradient norm; 0 for any.")
    ] = None,
    dp_clip: Annotated[
        float | None,
        _override("--dp-clip", "Private training: largest gradient norm of an image."),
    ] = None,
    dp_noise: Annotated[
        float | None, _override("--dp-noise", "Its noise, in parts of --dp-clip.")
    ] = None,
    schedule: Annotated[
        str | None, _override("--schedule", "Learning rate: constant, linear or cosine.")
    ] = None,
    warmup_steps: Annotated[
        int | None, _override("--warmup-steps", "Steps from 0 to the learning rate.")
    ] = None,
    augment: Annotated[
        str | None,
        _override("--augment", "Such as random_flip,random_crop:4; none for none."),
    ] = None,
    valid_fraction: Annotated[
        float | None, _override("--valid-fraction", "Of the training images, to choose by.")
    ] = None,
    stratify: Annotated[
        bool | None, _override("--stratify/--no-stratify", "Hold out the same part of each class.")
    ] = None,
    patience: Annotated[
        int | None, _override("--patience", "Epochs without a lower validation loss; 0: no end.")
    ] = None,
    restore_best: Annotated[
        bool | None,
        _override("--restore-best/--keep-last-epoch", "End with the lowest validation loss."),
    ] = None,
    dropout: Annotated[float | None, _override("--dropout", "Of a network that has it.")] = None,
    hidden: Annotated[int | None, _override("--hidden", "Hidden units of a network.")] = None,
    drop_last: Annotated[
        bool | None, _override("--drop-last/--keep-last", "Leave out a last short batch.")
    ] = None,
    log_every: Annotated[int | None, _override("--log-every", "Steps between log points.")] = None,
    tta: Annotated[
        str | None, _override("--tta", "none, mirror or translate: several views of a test image.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other value of a recipe or option of its network.",
            show_default=False,
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            metavar="N",
            help="Train N seeds, from --seed on, and sum up.",
            show_default=False,
            rich_help_panel=_MANY,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="NAME=V1,V2,...",
            help="Train with each value, such as lr=0.01,0.1; several make a grid.",
            show_default=False,
            rich_help_panel=_MANY,
        ),
    ] = None,
    replica_method: Annotated[
        str | None,
        typer.Option(
            "--replica-method",
            metavar="auto|loop|vmap",
            help="One run after another, or all as one more axis of each tensor.",
            show_default="auto",
            rich_help_panel=_MANY,
        ),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            "--checkpoint-every",
            metavar="STEPS|TIME",
            help="How often to save, such as 500 or 5min.",
            show_default="30s",
            rich_help_panel=_SAFETY,
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            "--keep-checkpoints",
            help="How many of the latest to keep.",
            show_default="2",
            rich_help_panel=_SAFETY,
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool | None,
        typer.Option(
            "--allow-nonfinite",
            help="Go on when a loss is not finite.",
            show_default="stop",
            rich_help_panel=_SAFETY,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write event files into tensorboard/ of the run while it trains.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
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
    """Train a recipe on a data set, evaluate it, and leave a run directory behind.

    [dim]fcifar train --dataset shapes10 --compile
    fcifar train blitz --epochs 4 --seed 1 --device cuda --compile
    fcifar train speed94 --dataset cifar100
    fcifar train blitz --compile --replicas 8 --sweep lr=0.001,0.003[/]
    """
    from fcifar import recipes
    from fcifar.cli import groups, progress
    from fcifar.cli.data import open_dataset
    from fcifar.interop import tensorboard as event_files
    from fcifar.report import run as drawing
    from fcifar.runs import directory, group, loop, manifest, ranks
    from fcifar.runs.interrupt import catching_signals
    from fcifar.runs.places import new_run, runs_root
    from fcifar.runs.runtime import make_runtime
    from fcifar.runs.safeguards import Safeguards

    overrides = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        dp_clip=dp_clip,
        dp_noise=dp_noise,
        schedule=schedule,
        warmup_steps=warmup_steps,
        drop_last=drop_last,
        valid_fraction=valid_fraction,
        stratify=stratify,
        patience=patience,
        restore_best=restore_best,
        log_every=log_every,
        tta=tta,
    )
    if augment is not None:
        overrides["augment"] = () if augment == "none" else tuple(augment.split(","))
    options_of_model = given(dropout=dropout, hidden=hidden)
    where = given(
        device=device,
        seed=seed,
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
        raise UserError("--replica-method is of --replicas and --sweep; give one of them too")
    if tensorboard:
        event_files.check()
    if resume is not None:
        refuse_changes(
            overrides
            | options_of_model
            | where
            | given(recipe=recipe, dataset=dataset, out=out, model=model)
            | given(compile=compile, set=changes or None, sweep=sweep or None)
            | given(replicas=replicas, replica_method=replica_method, runs_dir=runs_dir)
        )
    else:
        resume = processes.left_behind()
    if resume is not None:
        run = resume
        tensorboard = tensorboard or _goes_on_with_events(run)
        if group.is_group(run):
            asked = group.read(run)
            asked = asked._replace(safeguards=dataclasses.replace(asked.safeguards, **care))
            data = open_dataset(asked.dataset_name, data_dir, quiet=quiet)
            return groups.train(
                run, asked, data, resume=True, json=json, quiet=quiet, tensorboard=tensorboard
            )
        began = manifest.read_settings(run)
        the_recipe, runtime, compiled = began.recipe, began.runtime, began.compiled
        safeguards, traced = dataclasses.replace(began.safeguards, **care), began.traced
        data = open_dataset(began.dataset_name, data_dir, quiet=quiet)
        manifest.check_same_data(run, began, data)
    else:
        the_recipe = recipes.get(recipe or "blitz")
        overrides["model_options"] = options_of_model
        overrides = with_model(the_recipe, model, overrides)
        the_recipe = with_changes(the_recipe, changes or [], overrides=overrides)
        count = ranks.here().size
        runtime = make_runtime(**where, preferred=the_recipe.precision, processes=count)
        compiled = the_recipe.compile if compile is None else compile
        safeguards, traced = Safeguards(**care), ()
        if out is not None and runs_dir is not None:
            raise UserError("--out and --runs-dir both say where the run goes; give one of them")
        root, name = runs_root(runs_dir), dataset or "cifar10"
        run = out or new_run(root, the_recipe.name, name, f"seed{runtime.seed}")
        directory.check_free(run)
        processes.remember(run)
        data = open_dataset(name, data_dir, quiet=quiet)
        if is_group:
            asked = groups.plan(
                the_recipe,
                runtime,
                data,
                compiled=compiled,
                safeguards=safeguards,
                replicas=replicas,
                sweep=sweep or [],
                method=replica_method or "auto",
            )
            run = out or new_run(root, the_recipe.name, name, f"{len(asked.members)}runs")
            processes.remember(run)
            return groups.train(
                run, asked, data, resume=False, json=json, quiet=quiet, tensorboard=tensorboard
            )

    events = run if tensorboard else None
    with progress.training(quiet=quiet, events=events) as observe, catching_signals() as stop:
        result = loop.train(
            run,
            the_recipe,
            runtime,
            data,
            compiled=compiled,
            traced=traced,
            resume=resume is not None,
            safeguards=safeguards,
            observe=observe,
            stop=stop,
        )
    if isinstance(result, loop.Interrupted):
        command = processes.command(runtime.processes)
        output.note(
            f"stopped after step {result.step:,}; go on with: {command} train --resume {run}"
        )
        if json:
            output.document({"run_dir": str(run), "interrupted": True, "steps": result.step})
        return 128 + result.signum
    with progress.doing("drawing the pictures", quiet=quiet):
        drawing.draw(run, data)
    if json:
        output.document(result)
    else:
        trained.show(result)
    return 0


def _goes_on_with_events(run: Path) -> bool:
    """Whether a run that is resumed had event files for TensorBoard, and can have more."""
    from fcifar.interop import tensorboard

    if not tensorboard.is_begun(run):
        return False
    if not tensorboard.is_installed():
        output.note(f"tensorboard is not installed, so its files in {run} stay as they are")
    return tensorboard.is_installed()
