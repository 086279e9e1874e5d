"""The options of fcifar train, by the names of its parameters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, options

_RECIPE = "Recipe overrides"
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
            *(
                "--augment",
                "--class-weights",
                "--tta",
                "--valid-fraction",
                "--stratify/--no-stratify",
            ),
            *("--patience", "--restore-best/--keep-last-epoch"),
        ),
        _IMAGES,
    ),
}
_SAFETY = "Checkpoints"
_MANY = "Many at once"


def _override(name: str, help: str) -> Any:
    return typer.Option(
        name, help=help, show_default=False, rich_help_panel=_PANELS.get(name, _RECIPE)
    )


Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="See fcifar recipes; or MODULE:RECIPE.",
        show_default="blitz",
        autocompletion=completion.recipes,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="See fcifar data list.",
        show_default="cifar10",
        autocompletion=completion.datasets,
    ),
]
Model = Annotated[
    str | None,
    _override("--model", "See fcifar recipes parts; or MODULE:FACTORY, a model of yours."),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the training step with torch.compile.",
        show_default="the recipe's",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The run directory.",
        callback=options.in_utf8,
        show_default="a new one in --runs-dir",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Continue an interrupted run, or group of runs, by path or name.",
        callback=options.where_run_is,
        autocompletion=completion.runs,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        "--max-epochs",
        help="Passes over the training images.",
        show_default=False,
        rich_help_panel=_LENGTH,
    ),
]
BatchSize = Annotated[int | None, _override("--batch-size", "Images per step.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        help="Peak learning rate.",
        show_default=False,
        rich_help_panel=_DESCENT,
    ),
]
Optimizer = Annotated[str | None, _override("--optimizer", "sgd, adam or adamw.")]
Momentum = Annotated[float | None, _override("--momentum", "Momentum of sgd, in [0, 1).")]
Nesterov = Annotated[
    bool | None, _override("--nesterov/--no-nesterov", "Nesterov's form of momentum.")
]
WeightDecay = Annotated[
    float | None, _override("--weight-decay", "L2 penalty; decoupled for adamw.")
]
ClipNorm = Annotated[
    float | None, _override("--clip-norm", "Largest gradient norm; 0 disables clipping.")
]
DpClip = Annotated[
    float | None,
    _override("--dp-clip", "Private training: largest gradient norm of an image."),
]
DpNoise = Annotated[float | None, _override("--dp-noise", "Its noise, in parts of --dp-clip.")]
Schedule = Annotated[
    str | None, _override("--schedule", "Learning rate: constant, linear or cosine.")
]
WarmupSteps = Annotated[int | None, _override("--warmup-steps", "Linear warm-up, in steps.")]
Augment = Annotated[
    str | None,
    _override("--augment", "Such as random_flip,random_crop:4; none for none."),
]
ClassWeights = Annotated[
    str | None,
    _override("--class-weights", "none, or balanced: rare classes weigh more in the loss."),
]
ValidFraction = Annotated[
    float | None, _override("--valid-fraction", "Fraction of the training images held out.")
]
Stratify = Annotated[
    bool | None, _override("--stratify/--no-stratify", "Hold out the same part of each class.")
]
Patience = Annotated[
    int | None, _override("--patience", "Early stopping: epochs without improvement; 0: off.")
]
RestoreBest = Annotated[
    bool | None,
    _override(
        "--restore-best/--keep-last-epoch", "Keep the model with the lowest validation loss."
    ),
]
Dropout = Annotated[
    float | None, _override("--dropout", "Dropout probability, if the model has any.")
]
Hidden = Annotated[int | None, _override("--hidden", "Hidden units of the model.")]
DropLast = Annotated[
    bool | None, _override("--drop-last/--keep-last", "Drop the last incomplete batch of an epoch.")
]
LogEvery = Annotated[int | None, _override("--log-every", "Steps between log points.")]
Tta = Annotated[
    str | None, _override("--tta", "Test-time augmentation: none, mirror or translate.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other field of a recipe, or option of its model.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        metavar="N",
        help="Train N seeds, from --seed on, and summarize.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="NAME=V1,V2,...",
        help="Train with each value, such as lr=0.01,0.1; several make a grid.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
ReplicaMethod = Annotated[
    str | None,
    typer.Option(
        "--replica-method",
        metavar="auto|loop|vmap",
        help="Train one run after another, or all at once by vmap.",
        show_default="auto",
        rich_help_panel=_MANY,
    ),
]
CheckpointEvery = Annotated[
    str | None,
    typer.Option(
        "--checkpoint-every",
        metavar="STEPS|TIME",
        help="How often to save, such as 500 or 5min.",
        show_default="30s",
        rich_help_panel=_SAFETY,
    ),
]
KeepCheckpoints = Annotated[
    int | None,
    typer.Option(
        "--keep-checkpoints",
        help="How many of the latest to keep.",
        show_default="2",
        rich_help_panel=_SAFETY,
    ),
]
AllowNonfinite = Annotated[
    bool | None,
    typer.Option(
        "--allow-nonfinite",
        help="Go on when a loss is not finite.",
        show_default="stop",
        rich_help_panel=_SAFETY,
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write event files into tensorboard/ of the run while it trains.",
        rich_help_panel=options.OUTPUT,
    ),
]
