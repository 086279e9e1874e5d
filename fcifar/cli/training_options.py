"""The options of fcifar train, by the names of its parameters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, options

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
_SAFETY = "How to keep the run safe"
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
    _override("--model", "See fcifar recipes parts; or MODULE:FACTORY, a network of yours."),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Train through torch.compile: seconds to start, then fast.",
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
BatchSize = Annotated[int | None, _override("--batch-size", "Images a step.")]
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
Momentum = Annotated[float | None, _override("--momentum", "Of sgd, in [0, 1).")]
Nesterov = Annotated[
    bool | None, _override("--nesterov/--no-nesterov", "Nesterov's form of momentum.")
]
WeightDecay = Annotated[
    float | None, _override("--weight-decay", "L2 penalty; decoupled for adamw.")
]
ClipNorm = Annotated[float | None, _override("--clip-norm", "Largest gradient norm; 0 for any.")]
DpClip = Annotated[
    float | None,
    _override("--dp-clip", "Private training: largest gradient norm of an image."),
]
DpNoise = Annotated[float | None, _override("--dp-noise", "Its noise, in parts of --dp-clip.")]
Schedule = Annotated[
    str | None, _override("--schedule", "Learning rate: constant, linear or cosine.")
]
WarmupSteps = Annotated[
    int | None, _override("--warmup-steps", "Steps from 0 to the learning rate.")
]
Augment = Annotated[
    str | None,
    _override("--augment", "Such as random_flip,random_crop:4; none for none."),
]
ClassWeights = Annotated[
    str | None,
    _override("--class-weights", "none, or balanced: rare classes weigh more in the loss."),
]
ValidFraction = Annotated[
    float | None, _override("--valid-fraction", "Of the training images, to choose by.")
]
Stratify = Annotated[
    bool | None, _override("--stratify/--no-stratify", "Hold out the same part of each class.")
]
Patience = Annotated[
    int | None, _override("--patience", "Epochs without a lower validation loss; 0: no end.")
]
RestoreBest = Annotated[
    bool | None,
    _override("--restore-best/--keep-last-epoch", "End with the lowest validation loss."),
]
Dropout = Annotated[float | None, _override("--dropout", "Of a network that has it.")]
Hidden = Annotated[int | None, _override("--hidden", "Hidden units of a network.")]
DropLast = Annotated[
    bool | None, _override("--drop-last/--keep-last", "Leave out a last short batch.")
]
LogEvery = Annotated[int | None, _override("--log-every", "Steps between log points.")]
Tta = Annotated[
    str | None, _override("--tta", "none, mirror or translate: several views of a test image.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other value of a recipe or option of its network.",
        show_default=False,
        rich_help_panel=_RECIPE,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        metavar="N",
        help="Train N seeds, from --seed on, and sum up.",
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
        help="One run after another, or all as one more axis of each tensor.",
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
