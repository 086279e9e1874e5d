"""The options of ``fcifar train``. Those that override a recipe are made from its fields."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fcifar.cli import completion, options
from fcifar.cli.options import argument, option
from fcifar.recipes import recipe as recipes

Command = TypeVar("Command", bound=Callable[..., Any])

_RECIPE = "Recipe overrides"
_PANELS = ("", recipes.LENGTH, recipes.OPTIMIZER, recipes.IMAGES)
_recipe = functools.partial(option, rich_help_panel=_RECIPE)
_many = functools.partial(option, rich_help_panel="Many at once")
_checkpoints = functools.partial(option, rich_help_panel="Checkpoints")


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
    panel = ": ".join(filter(None, (_RECIPE, field.metadata["panel"])))
    flags = " ".join(recipes.option_flags(field))
    kind = field.type if field.type in (int, float, bool) else str
    return Annotated[  # type: ignore[operator]
        kind | None, option(flags, field.metadata["about"], rich_help_panel=panel)
    ]


Recipe = Annotated[
    str | None,
    argument(
        "RECIPE", "See fcifar recipes; or MODULE:RECIPE.", completion.recipes, show_default="blitz"
    ),
]
Compile = Annotated[
    bool | None,
    option("--compile/--no-compile", "Use torch.compile for the step.", None, "the recipe's"),
]
Out = Annotated[
    Path | None,
    options.path_option("--out", "The run directory.", None, "a new one in --runs-dir"),
]
Resume = Annotated[
    Path | None,
    option(
        "--resume",
        "Resume an interrupted run, or group of runs, by path or name.",
        "RUN",
        callback=options.where_run_is,
        autocompletion=completion.runs,
    ),
]
Dropout = Annotated[
    float | None, _recipe("--dropout", "Dropout probability, if the model has any.")
]
Hidden = Annotated[int | None, _recipe("--hidden", "Hidden units of the model.")]
Changes = Annotated[
    list[str] | None,
    _recipe("--set", "Any other field of a recipe, or option of its model.", "NAME=VALUE"),
]
Replicas = Annotated[
    int | None, _many("--replicas", "Train N seeds, from --seed on, and summarize.", "N")
]
Sweep = Annotated[
    list[str] | None,
    _many(
        "--sweep",
        "Train with each value, such as lr=0.01,0.1; several make a grid.",
        "NAME=V1,V2,...",
    ),
]
ReplicaMethod = Annotated[
    str | None,
    _many("--replica-method", "Train one after another, or all by vmap.", "auto|loop|vmap", "auto"),
]
CheckpointEvery = Annotated[
    str | None,
    _checkpoints("--checkpoint-every", "How often, such as 500 or 5min.", "STEPS|TIME", "30s"),
]
KeepCheckpoints = Annotated[
    int | None, _checkpoints("--keep-checkpoints", "How many of the latest to keep.", None, "2")
]
AllowNonfinite = Annotated[
    bool | None,
    _checkpoints("--allow-nonfinite", "Continue when a loss is not finite.", None, "stop"),
]
Tensorboard = Annotated[
    bool, options.output_option("--tensorboard", "Write event files to tensorboard/ in the run.")
]
