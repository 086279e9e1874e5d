"""fcifar train."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import options, output, trained
from fcifar.cli.overrides import given, refuse_changes, with_changes, with_model
from fcifar.errors import UserError

_RECIPE = "Instead of what the recipe says"
_SAFETY = "How to keep the run safe"
_MANY = "Many at once"


def _override(name: str, help: str) -> Any:
    return typer.Option(name, help=help, show_default=False, rich_help_panel=_RECIPE)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="See fcifar recipes; or MODULE:RECIPE.", show_default="blitz"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="See fcifar data list.", show_default="cifar10"),
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
            show_default="a new one in runs/",
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
            rich_help_panel=_RECIPE,
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
            rich_help_panel=_RECIPE,
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
    device: options.Device = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Train a recipe on a data set, evaluate it, and leave a run directory behind.

    [dim]fcifar train --dataset shapes10 --compile
    fcifar train blitz --epochs 4 --seed 1 --device cuda --compile
    fcifar train blitz --compile --replicas 8 --sweep lr=0.001,0.003[/]
    """
    import logging

    from fcifar import recipes
    from fcifar.cli import groups, progress
    from fcifar.cli.data import open_dataset
    from fcifar.report import run as drawing
    from fcifar.runs import directory, group, loop, manifest
    from fcifar.runs.interrupt import catching_signals
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
    # A machine with nvcc and without a GPU gets a warning about that from torch.compile.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if resume is not None:
        refuse_changes(
            overrides
            | options_of_model
            | where
            | given(recipe=recipe, dataset=dataset, out=out, model=model)
            | given(compile=compile, set=changes or None, sweep=sweep or None)
            | given(replicas=replicas, replica_method=replica_method)
        )
        run = resume
        if group.is_group(run):
            asked = group.read(run)
            asked = asked._replace(safeguards=dataclasses.replace(asked.safeguards, **care))
            data = open_dataset(asked.dataset_name, data_dir, quiet=quiet)
            return groups.train(run, asked, data, resume=True, json=json, quiet=quiet)
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
        runtime = make_runtime(**where, preferred=the_recipe.precision)
        compiled = the_recipe.compile if compile is None else compile
        safeguards, traced = Safeguards(**care), ()
        run = out or _new_run(the_recipe.name, dataset or "cifar10", runtime.seed)
        directory.check_free(run)
        data = open_dataset(dataset or "cifar10", data_dir, quiet=quiet)
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
            run = out or groups.new_path(the_recipe.name, data.name, len(asked.members))
            return groups.train(run, asked, data, resume=False, json=json, quiet=quiet)

    with progress.training(quiet=quiet) as observe, catching_signals() as stop:
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
        output.note(f"stopped after step {result.step:,}; go on with: fcifar train --resume {run}")
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


def _new_run(recipe: str, dataset: str, seed: int) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe}-{dataset}-seed{seed}-{stamp}"
