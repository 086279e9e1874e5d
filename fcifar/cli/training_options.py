"""The options of ``fcifar train``. Those that override a recipe are made from its fields."""

import dataclasses
import functools
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
_recipe = functools.partial(typer.Option, rich_help_panel=_RECIPE)
_many = functools.partial(typer.Option, rich_help_panel="Many at once")
_checkpoints = functools.partial(typer.Option, rich_help_panel="Checkpoints")


def with_recipe_options(command: Command) -> Command:
    """Replace a command's ``**overrides`` by an option for each field of a recipe that has one."""
    annotations = {
        field.name: _option(field)
        for panel in _PANELS
        for field in dataclasses.fields(recipes.Recipe)
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
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**annotations, **command.__annotations__}
    del command.__annotations__["overrides"]
    return command


def _option(field: dataclasses.Field[Any]) -> Any:
    panel = field.metadata["panel"]
    option = typer.Option(
        *recipes.option_flags(field),
        help=field.metadata["about"],
        rich_help_panel=f"{_RECIPE}: {panel}" if panel else _RECIPE,
    )
    kind = field.type if field.type in (int, float, bool) else str
    return Annotated[kind | None, option]  # type: ignore[operator]


Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="See fcifar recipes; or MODULE:RECIPE.",
        show_default="blitz",
        autocompletion=completion.recipes,
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
        help="Resume an interrupted run, or group of runs, by path or name.",
        callback=options.where_run_is,
        autocompletion=completion.runs,
    ),
]
Dropout = Annotated[
    float | None, _recipe("--dropout", help="Dropout probability, if the model has any.")
]
Hidden = Annotated[int | None, _recipe("--hidden", help="Hidden units of the model.")]
Changes = Annotated[
    list[str] | None,
    _recipe(
        "--set", metavar="NAME=VALUE", help="Any other field of a recipe, or option of its model."
    ),
]
Replicas = Annotated[
    int | None,
    _many("--replicas", metavar="N", help="Train N seeds, from --seed on, and summarize."),
]
Sweep = Annotated[
    list[str] | None,
    _many(
        "--sweep",
        metavar="NAME=V1,V2,...",
        help="Train with each value, such as lr=0.01,0.1; several make a grid.",
    ),
]
ReplicaMethod = Annotated[
    str | None,
    _many(
        "--replica-method",
        metavar="auto|loop|vmap",
        help="Train one run after another, or all at once by vmap.",
        show_default="auto",
    ),
]
CheckpointEvery = Annotated[
    str | None,
    _checkpoints(
        "--checkpoint-every",
        metavar="STEPS|TIME",
        help="How often to save, such as 500 or 5min.",
        show_default="30s",
    ),
]
KeepCheckpoints = Annotated[
    int | None,
    _checkpoints("--keep-checkpoints", help="How many of the latest to keep.", show_default="2"),
]
AllowNonfinite = Annotated[
    bool | None,
    _checkpoints(
        "--allow-nonfinite", help="Continue when a loss is not finite.", show_default="stop"
    ),
]
Tensorboard = Annotated[
    bool,
    options.output_option(
        "--tensorboard", help="Write event files into tensorboard/ of the run while it trains."
    ),
]
