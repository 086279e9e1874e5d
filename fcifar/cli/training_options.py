"""The options of fcifar train. Those that override a recipe are made from the fields of Recipe."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fcifar.cli import completion, options
from fcifar.recipes import recipe as recipes

Command = TypeVar("Command", bound=Callable[..., Any])

_RECIPE = "Recipe overrides"
_PANELS = ("", recipes.LENGTH, recipes.OPTIMIZER, recipes.IMAGES)
_CHECKPOINTS = "Checkpoints"
_MANY = "Many at once"
_TYPES = (int, float, bool, str)


def with_recipe_options(command: Command) -> Command:
    """Replace a command's ``**overrides`` by an option for each field of a recipe that has one."""
    annotations = {
        field.name: _option(field)
        for panel in _PANELS
        for field in dataclasses.fields(recipes.Recipe)
        if field.metadata.get("panel") == panel
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind != parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
    place = [p.name for p in parameters].index("resume") + 1
    parameters[place:place] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**annotations, **command.__annotations__}
    del command.__annotations__["overrides"]
    return command


def _option(field: "dataclasses.Field[Any]") -> Any:
    about, panel = field.metadata["about"], field.metadata["panel"]
    kind = field.type if field.type in _TYPES else str
    option = typer.Option(
        *recipes.option_flags(field),
        help=about,
        show_default=False,
        rich_help_panel=f"{_RECIPE}: {panel}" if panel else _RECIPE,
    )
    return Annotated[kind | None, option]  # type: ignore[operator]


def _override(name: str, help: str) -> Any:
    return typer.Option(name, help=help, show_default=False, rich_help_panel=_RECIPE)


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
Dropout = Annotated[
    float | None, _override("--dropout", "Dropout probability, if the model has any.")
]
Hidden = Annotated[int | None, _override("--hidden", "Hidden units of the model.")]
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
        rich_help_panel=_CHECKPOINTS,
    ),
]
KeepCheckpoints = Annotated[
    int | None,
    typer.Option(
        "--keep-checkpoints",
        help="How many of the latest to keep.",
        show_default="2",
        rich_help_panel=_CHECKPOINTS,
    ),
]
AllowNonfinite = Annotated[
    bool | None,
    typer.Option(
        "--allow-nonfinite",
        help="Go on when a loss is not finite.",
        show_default="stop",
        rich_help_panel=_CHECKPOINTS,
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
