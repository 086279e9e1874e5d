"""fcifar train."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fcifar.cli import completion, options, output, progress, render
from fcifar.cli.options import argument, option
from fcifar.cli.overrides import (
    flag,
    given,
    make_sweep,
    naming_options,
    split_texts,
    with_changes,
)
from fcifar.errors import UsageError, names_of, one_line
from fcifar.recipes import recipe as recipe_fields

if TYPE_CHECKING:
    from fcifar.data import Dataset
    from fcifar.recipes.trials import Trial

Command = TypeVar("Command", bound=Callable[..., Any])

_RECIPE = "Recipe overrides"
_PANELS = ("", recipe_fields.LENGTH, recipe_fields.OPTIMIZER, recipe_fields.IMAGES)
_recipe = functools.partial(option, rich_help_panel=_RECIPE)
_many = functools.partial(option, rich_help_panel="Many at once")
_checkpoints = functools.partial(option, rich_help_panel="Checkpoints")


def _with_recipe_options(command: Command) -> Command:
    """Replace a command's ``**overrides`` by an option for each field of a recipe that has one.

    Errors about fields name these options.
    """

    @functools.wraps(command)
    def named(**values: Any) -> Any:
        with naming_options(values["changes"], values["sweep"]):
            return command(**values)

    annotations = {
        field.name: _option(field)
        for panel in _PANELS
        for field in dataclasses.fields(recipe_fields.Recipe)
        if field.metadata.get("panel") == panel
    }
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    index = [p.name for p in parameters].index("resume") + 1
    parameters[index:index] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    named.__annotations__ = {**annotations, **command.__annotations__}
    del named.__annotations__["overrides"]
    return named  # type: ignore[return-value]


def _option(field: dataclasses.Field[Any]) -> Any:
    panel = ": ".join(filter(None, (_RECIPE, field.metadata["panel"])))
    flags = " ".join(recipe_fields.option_flags(field))
    kind = field.type if field.type in (int, float, bool) else str
    return Annotated[  # type: ignore[operator]
        kind | None, option(flags, field.metadata["about"], rich_help_panel=panel)
    ]


@_with_recipe_options
def train(
    recipe: Annotated[
        str | None,
        argument(
            "RECIPE",
            "See fcifar recipes; or MODULE:RECIPE.",
            completion.recipes,
            show_default="blitz",
        ),
    ] = None,
    dataset: Annotated[str | None, options.dataset_option("cifar10")] = None,
    compile: Annotated[
        bool | None,
        option(
            "--compile/--no-compile",
            "Compile the step; by default, if the run repays it.",
            None,
            "auto",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.path_option("--out", "The run directory.", None, "a new one in --runs-dir"),
    ] = None,
    resume: Annotated[
        Path | None,
        option(
            "--resume",
            "Resume an interrupted run, or group of runs, by path or name.",
            "RUN",
            callback=options.locate_run,
            autocompletion=completion.runs,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        option(
            "--init",
            "Begin with the weights of a run or a file (.pth, .pt, .safetensors).",
            "RUN|FILE",
            callback=options.locate_run,
            autocompletion=completion.runs,
        ),
    ] = None,
    init_partial: Annotated[
        bool | None, option("--init-partial", "Take what fits of --init, and draw the rest.")
    ] = None,
    dropout: Annotated[
        float | None, _recipe("--dropout", "Dropout probability, if the model has any.")
    ] = None,
    hidden: Annotated[int | None, _recipe("--hidden", "Hidden units of the model.")] = None,
    changes: Annotated[
        list[str] | None,
        _recipe("--set", "Any other field of a recipe, or option of its model.", "NAME=VALUE"),
    ] = None,
    replicas: Annotated[
        int | None, _many("--replicas", "Train N seeds, from --seed on, and summarize.", "N")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        _many(
            "--sweep",
            "Train with each value, such as lr=0.01,0.1; several make a grid.",
            "NAME=V1,V2,...",
        ),
    ] = None,
    replica_method: Annotated[
        str | None,
        _many(
            "--replica-method", "Train one after another, or all by vmap.", "auto|loop|vmap", "auto"
        ),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        _checkpoints("--checkpoint-every", "How often, such as 500 or 5min.", "STEPS|TIME", "30s"),
    ] = None,
    keep_checkpoints: Annotated[
        int | None, _checkpoints("--keep-checkpoints", "How many of the latest to keep.", None, "2")
    ] = None,
    allow_nonfinite: Annotated[
        bool | None,
        _checkpoints(
            "--allow-nonfinite", "Continue when a loss is not finite, instead of stopping."
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        options.output_option("--tensorboard", "Write event files to tensorboard/ in the run."),
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
    **overrides: Any,
) -> int:
    """Train a recipe on a data set, evaluate it, and write a run directory.

    [dim]fcifar train --dataset shapes10 --compile
    fcifar train blitz --epochs 4 --seed 1 --device cuda --compile
    fcifar train speed94 --dataset cifar100
    fcifar train blitz --compile --replicas 8 --sweep lr=0.001,0.003
    fcifar train blitz --dataset pets --init runs/a --freeze 'conv*'[/]
    """
    from fcifar.cli.data import begin_to_read, open_dataset

    if resume is None:
        begin_to_read(dataset or "cifar10", data_dir)
    from fcifar import recipes, tree
    from fcifar.export import load
    from fcifar.export import tensorboard as event_files
    from fcifar.report import draw
    from fcifar.train import accounting, distributed, loop, programs, run_dir
    from fcifar.train import config as configs
    from fcifar.train import sweep as sweeps
    from fcifar.train.events import Event, Preparing
    from fcifar.train.runtime import make_runtime
    from fcifar.train.signals import catching_signals

    overrides = given(**overrides)
    model = overrides.pop("model", None)
    for name in {"augment", "freeze"} & overrides.keys():
        overrides[name] = tuple(split_texts(name, overrides[name]))
    model_options = given(dropout=dropout, hidden=hidden)
    where = given(device=device, threads=threads, precision=precision, deterministic=deterministic)
    checkpoint = given(
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        allow_nonfinite=allow_nonfinite,
    )
    is_sweep = replicas is not None or bool(sweep)
    if replica_method is not None and not is_sweep and resume is None:
        raise UsageError("--replica-method needs --replicas or --sweep; give one of them")
    if init_partial and init is None:
        raise UsageError("--init-partial needs --init, whose weights it takes; give both")
    if tensorboard:
        event_files.check()
    more_epochs = overrides.pop("epochs", None) if resume is not None else None
    if resume is None:
        resume = _restarted(out)
    elif others := (
        overrides
        | model_options
        | where
        | given(seed=seed, recipe=recipe, dataset=dataset, out=out, model=model)
        | given(compile=compile, set=changes or None, sweep=sweep or None)
        | given(replicas=replicas, replica_method=replica_method)
        | given(init=init, init_partial=init_partial)
    ):
        raise UsageError(
            f"--resume continues a run with its own settings, and {', '.join(map(flag, others))} "
            "would change them; leave that out, or begin a new run"
        )

    spec, pretrained = None, None
    folders = contextlib.ExitStack()  # the new run's, which is removed if it stays empty
    notes: list[str] = []  # to print once training begins
    if resume is not None and run_dir.is_group(resume):
        if more_epochs is not None:
            raise UsageError(
                f"{resume} is a group of runs, and --epochs extends a single run; begin a new "
                "group with more epochs"
            )
        run, spec = resume, sweeps.read(resume)
        config = spec.config.replace(
            checkpoint=dataclasses.replace(spec.config.checkpoint, **checkpoint)
        )
        spec = spec._replace(config=config)
        data = open_dataset(config.dataset, data_dir, quiet=quiet)
    elif resume is not None:
        run = resume
        with distributed.main_first("manifest"):  # which it may write
            config = configs.read_config(run)
            data = open_dataset(config.dataset, data_dir, quiet=quiet)
            configs.check_same_data(run, config, data)
            if more_epochs is not None and distributed.is_main():
                config = configs.extend_config(run, config, more_epochs)
        config = config.replace(checkpoint=dataclasses.replace(config.checkpoint, **checkpoint))
    else:
        base = _get_recipe(recipe or "blitz", data_dir)
        if model is not None and model != base.model:
            overrides |= {"model": model, "model_options": model_options}
        else:
            overrides["model_options"] = {**base.model_options, **model_options}
        base = with_changes(base, changes or [], overrides=overrides)
        size = distributed.world_size()
        flops = recipes.count_flops(base) / size
        runtime = make_runtime(**where, preferred=base.precision, processes=size, step_flops=flops)
        if out is not None and runs_dir is not None:
            raise UsageError("--out and --runs-dir both say where the run goes; give one of them")
        root, name = run_dir.runs_root(runs_dir), dataset or "cifar10"
        which = f"seed{recipes.check_seed(seed or 0)}"
        if out is not None and distributed.is_main():
            run_dir.check_free(out)
        data = open_dataset(name, data_dir, quiet=quiet)
        notes += filter(None, [_classes_without_images(data)])
        config = configs.make_config(
            base,
            data,
            seed=seed or 0,
            runtime=runtime,
            compile=base.compile if compile is None else compile,
            checkpoint=configs.CheckpointConfig(**checkpoint),
        )
        if init is not None:
            initial = load.load_initial(init, base, len(data.classes), partial=bool(init_partial))
            pretrained = initial.values
            notes += initial.notes
            config = config.replace(
                init=configs.Init(
                    source=str(init), digest=tree.digest(pretrained), drawn=initial.drawn
                )
            )
        method = replica_method or "auto"
        make_spec = functools.partial(
            make_sweep, replicas=replicas, grid=sweep or [], method=method
        )
        spec = make_spec(config) if is_sweep else None
        if compile is None and not base.compile:
            runs = len(spec.trials) if spec else 1
            steps = runs * base.epochs * recipes.steps_per_epoch(base, len(data.train_labels))
            compiled, why = programs.choose(runtime.device, steps, flops)
            config = config.replace(compile=compiled)
            notes += [why] if why else []
            spec = make_spec(config) if is_sweep else None
        if spec is not None:
            _check_same_model(spec.trials, init)
            which = f"{len(spec.trials)}runs"
        if out is None and distributed.is_main():
            out = folders.enter_context(run_dir.new_run(root, base.name, name, which))
        run = Path(distributed.from_main("run", str(out)))

    notes += filter(None, [accounting.missing(config.recipe)])
    tensorboard = tensorboard or (resume is not None and _has_event_files(run))
    events = run if tensorboard and distributed.is_main() else None
    resumed = resume is not None
    command = f"{distributed.command(config.runtime.processes)} train --resume {run}"
    try:
        with (
            folders,
            progress.training(quiet=quiet, events=events) as show,
            catching_signals() as stop,
        ):

            def observe(event: Event) -> None:
                for note in () if quiet else notes:  # not before a mistake has been reported
                    output.note(note)
                notes.clear()
                if event == Preparing("evaluating") and distributed.is_main():
                    draw.prepare()
                show(event)

            how: dict[str, Any] = {"resume": resumed, "observe": observe, "stop": stop}
            if spec is None:
                result = loop.train(run, config, data, pretrained=pretrained, **how)
            else:
                result = sweeps.train(run, spec, data, pretrained=pretrained, **how)
    except distributed.LostError as error:
        if not (run / run_dir.MANIFEST).exists():
            raise
        raise distributed.LostError(f"{error}; resume with: {command}") from error
    if isinstance(result, loop.Interrupted):
        if spec is None:
            message = f"stopped after step {result.step:,}; resume with: {command}"
        elif run_dir.is_group(run):
            message = f"stopped after step {result.step:,} of a run; resume with: {command}"
        else:
            message = "stopped before the first run"
        output.note(message)
        if json:
            output.document({"run_dir": str(run), "interrupted": True, "steps": result.step})
        return 128 + (result.signum or 0)
    if not distributed.is_main():
        return 0
    with progress.doing("drawing the figures", quiet=quiet):
        if spec is None:
            draw.run(run, data)
        else:
            draw.group(run)
    output.result(result, render.show_report if spec is None else render.show_sweep, json)
    return 0


def _get_recipe(name: str, data_dir: Path | None) -> recipe_fields.Recipe:
    """Return a recipe; if there is none, but a data set of that name, the error says so."""
    from fcifar import recipes
    from fcifar.data import catalog, paths, shapes10

    try:
        return recipes.get(name)
    except UsageError as error:
        is_known = name in catalog.KNOWN or name == shapes10.NAME
        if is_known or (
            paths.NAME.fullmatch(name) and paths.path_of(name, paths.data_root(data_dir)).exists()
        ):
            raise UsageError(
                f"{name} is a data set and no recipe; give --dataset {name}, after a recipe or "
                "without one"
            ) from error
        raise


def _classes_without_images(dataset: "Dataset") -> str:
    """Say which classes have no training images; empty if all have some."""
    counts = dataset.train_labels.bincount(minlength=len(dataset.classes)).tolist()
    names = [one_line(name) for name, n in zip(dataset.classes, counts, strict=True) if not n]
    if not names:
        return ""
    some = f"{len(names):,} of {len(dataset.classes):,} classes"
    return f"no training images of {some}: {names_of(names)}"


def _check_same_model(trials: Sequence["Trial"], init: Path | None) -> None:
    """Raise a UsageError if trials with different models begin with the same weights."""
    models = [(trial.recipe.model, trial.recipe.model_options) for trial in trials]
    if init is not None and any(model != models[0] for model in models):
        raise UsageError(
            f"--sweep has different models, and --init {init} has the weights of one; sweep "
            "something else, or begin without --init"
        )


def _restarted(out: Path | None) -> Path | None:
    """Return the run to resume after torchrun has restarted the processes."""
    from fcifar.train import distributed, run_dir

    count, most = distributed.restarts()
    if out is None and most:
        raise UsageError(
            "torchrun --max-restarts needs a fixed run directory, which the restarted processes "
            "resume; add --out"
        )
    begun = out is not None and ((out / run_dir.MANIFEST).exists() or run_dir.is_group(out))
    return out if count and begun else None


def _has_event_files(run: Path) -> bool:
    """Whether a run to be resumed has event files for TensorBoard, and can have more."""
    from fcifar.export import tensorboard

    if not tensorboard.is_begun(run):
        return False
    if not tensorboard.is_installed():
        output.note(f"tensorboard is not installed, so its files in {run} stay as they are")
    return tensorboard.is_installed()
