"""Models on the command line: runs, ``final.safetensors``, and state_dicts from elsewhere."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fcifar.cli import output
from fcifar.cli.options import option
from fcifar.cli.overrides import naming_options, with_changes
from fcifar.errors import UsageError, shown

if TYPE_CHECKING:
    from fcifar.export.load import Saved
    from fcifar.recipes import Recipe
    from fcifar.runs.inference import Trained

DEFAULT = "cifar10"  # the data set of a model that does not record its own

_option = functools.partial(
    option, rich_help_panel="A state_dict from elsewhere (.pth, .pt, .safetensors)"
)
Model = Annotated[
    str | None, _option("--model", "Its model, with mean and standard deviation 0.5.", "NAME")
]
RecipeName = Annotated[
    str | None, _option("--recipe", "Or the recipe of its model and normalisation.", "NAME")
]
Changes = Annotated[
    list[str] | None, _option("--set", "An option of the model, or mean or std.", "NAME=VALUE")
]
Average = Annotated[
    bool,
    option("--average", "The average of the run (ema_decay, swa_start) instead of its last step."),
]
Calibrated = Annotated[
    bool, option("--calibrated", "With the temperature of fcifar eval RUN --calibrate.")
]
ClassesOf = Annotated[
    str | None, _option("--dataset", "The data set of its classes.", "NAME", DEFAULT)
]


def recipe_of(
    model: str | None, recipe: str | None, changes: Sequence[str] | None
) -> "Recipe | None":
    """Return the recipe of ``--model``, ``--recipe`` and ``--set``; None without any of them.

    Raise a UsageError if they contradict each other, or do not fit a model.
    """
    from fcifar import recipes

    if model is not None and recipe is not None:
        raise UsageError("--model and --recipe both name the model; give one of them")
    start: dict[str, Any] = {}
    if model is not None:
        start = {"name": model or "none", "model": model, "model_options": {}}
        base = recipes.Recipe(name="none")
    elif recipe is not None:
        base = recipes.get(recipe)
    elif changes:
        raise UsageError("--set needs the model of a state_dict; give --model or --recipe, too")
    else:
        return None
    name = start.get("model", base.model)
    with naming_options(changes):
        options, any_other = recipes.options_of(name)
        fields = recipes.to_dict(base)
        for change in changes or ():
            key, equals, _ = change.partition("=")
            accepted = key in (*options, "mean", "std") or (any_other and key not in fields)
            if equals and not accepted:
                known = f"an option of {name} ({', '.join(options)}), " if options else ""
                raise UsageError(
                    f"--set {shown(key)} changes nothing of a trained model; give {known}mean or "
                    "std"
                )
        return with_changes(base, changes or [], overrides=start)


def load_all(
    paths: Sequence[Path], recipe: "Recipe | None", *, average: bool = False
) -> "list[Trained | Saved]":
    """Return the models at ``paths``, or raise as ``export.load.load``.

    With ``average``, return the averages of runs. Raise a UsageError, too, if a recipe is given
    that no path needs.
    """
    from fcifar.export import load

    if recipe is not None and all(map(load.says_what_it_is, paths)):
        for path in paths:
            load.load(path, None)  # an error if it is missing
        raise UsageError(
            f"--model, --recipe and --set are of a state_dict from elsewhere, and {paths[0]} "
            "records its own model; leave them out"
        )
    return [load.load(path, recipe, average=average) for path in paths]


def dataset_of(found: "Sequence[Trained | Saved]") -> str:
    """Return the data set of the first model that records one."""
    from fcifar.runs.inference import Trained

    known = (model.dataset for model in found if isinstance(model, Trained))
    return next(filter(None, known), DEFAULT)


def with_classes(found: "Sequence[Trained | Saved]", classes: tuple[str, ...]) -> "list[Trained]":
    """Return the models, those from elsewhere with ``classes``, or raise as ``export.load``.

    Notes on converted state_dicts go to stderr.
    """
    from fcifar.export import load

    result = []
    for each in found:
        model, notes = load.with_classes(each, classes)
        result.append(model)
        for note in notes:
            output.note(note)
    return result


def load_one(
    path: Path,
    recipe: "Recipe | None",
    dataset: str | None,
    data_dir: Path | None,
    *,
    average: bool = False,
    calibrated: bool = False,
) -> "Trained":
    """Return the model at ``path``; one from elsewhere with the classes of a data set.

    With ``calibrated``, its logits are divided by the temperature that is kept in the run.

    Raise a UsageError as ``load_all``, or if the data set is missing or not needed.
    """
    from fcifar.runs.inference import Trained

    (found,) = load_all([path], recipe, average=average)
    if not isinstance(found, Trained):
        (found,) = with_classes([found], _class_names(dataset or DEFAULT, data_dir))
    elif dataset is not None:
        raise UsageError(
            f"--dataset names the classes of a state_dict from elsewhere, and {path} has its own; "
            "leave it out"
        )
    if calibrated:
        from fcifar.runs import temperature

        return temperature.load(path, average=average)
    return found


def _class_names(dataset: str, data_dir: Path | None) -> tuple[str, ...]:
    """Return the classes of a data set; CIFAR-10 and the built-in one need not be prepared."""
    from fcifar import data
    from fcifar.export.load import CIFAR10

    root = data.data_root(data_dir)
    summary = next((s for s in data.list_prepared(root) if s.name == dataset), None)
    if summary is None and dataset == DEFAULT:
        return CIFAR10
    return summary.classes if summary and not summary.problem else data.load(dataset, root).classes
