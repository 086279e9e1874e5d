"""Networks on the command line: runs, files of ours, and other people's state_dicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcifar.cli import output
from fcifar.cli.overrides import with_changes
from fcifar.errors import UsageError, shown

if TYPE_CHECKING:
    from fcifar.export.load import Saved
    from fcifar.recipes import Recipe
    from fcifar.runs.inference import Trained

_SAVED = "A state_dict from elsewhere (.pth, .pt, .safetensors)"
DEFAULT = "cifar10"  # the data set of a network that does not say what it was trained on

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The model it is of, with mean and standard deviation 0.5.",
        show_default=False,
        rich_help_panel=_SAVED,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Or the recipe with its model and normalisation.",
        show_default=False,
        rich_help_panel=_SAVED,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the model, or mean or std.",
        show_default=False,
        rich_help_panel=_SAVED,
    ),
]
ClassesOf = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="The data set that it has the classes of.",
        show_default="cifar10",
        rich_help_panel=_SAVED,
    ),
]


def asked_recipe(
    model: str | None, recipe: str | None, changes: Sequence[str] | None
) -> "Recipe | None":
    """What ``--model``, ``--recipe`` and ``--set`` say of a state_dict; None where nothing is said.

    Raises:
        UsageError: they contradict each other, or are of no network.
    """
    from fcifar import recipes

    if model is not None and recipe is not None:
        raise UsageError("--model and --recipe both name the model; give one of them")
    if model is not None:
        name, start = model, {"name": model or "none", "model": model, "model_options": {}}
        base = recipes.Recipe(name="none")
    elif recipe is not None:
        base, start = recipes.get(recipe), {}
        name = base.model
    elif changes:
        raise UsageError("--set is of the model in a state_dict; give --model or --recipe too")
    else:
        return None
    options, any_other = recipes.options_of(name)
    fields = recipes.to_dict(base)
    for change in changes or ():
        key, equals, _ = change.partition("=")
        takes_it = key in (*options, "mean", "std") or (any_other and key not in fields)
        if equals and not takes_it:
            known = f"an option of {name} ({', '.join(options)}), " if options else ""
            raise UsageError(
                f"--set {shown(key)} changes nothing of a trained model; give {known}mean or std"
            )
    return with_changes(base, changes or [], overrides=start)


def load_all(paths: Sequence[Path], asked: "Recipe | None") -> "list[Trained | Saved]":
    """The networks at ``paths``.

    Raises:
        UsageError: as ``export.load.load``; or something was asked that no path needs.
        ExternalError: a file is damaged.
    """
    from fcifar.export import load

    if asked is not None and all(map(load.says_what_it_is, paths)):
        for path in paths:
            load.load(path, None)  # is it there at all?
        raise UsageError(
            f"--model, --recipe and --set are of a state_dict from elsewhere, and {paths[0]} says "
            "itself which model it holds; leave them out"
        )
    return [load.load(path, asked) for path in paths]


def dataset_of(found: "Sequence[Trained | Saved]") -> str:
    """The data set that the first network which says so was trained on."""
    from fcifar.runs.inference import Trained

    known = (network.dataset for network in found if isinstance(network, Trained))
    return next(filter(None, known), DEFAULT)


def with_classes(found: "Sequence[Trained | Saved]", classes: tuple[str, ...]) -> "list[Trained]":
    """The networks, those from elsewhere with the class names. Raises as ``export.load.complete``.

    What was done to get at a state_dict's values is said on stderr.
    """
    from fcifar.export import load

    result = []
    for each in found:
        network, notes = load.with_classes(each, classes)
        result.append(network)
        for note in notes:
            output.note(note)
    return result


def load_one(
    path: Path, asked: "Recipe | None", dataset: str | None, data_dir: Path | None = None
) -> "Trained":
    """The network at ``path``; one from elsewhere with the class names of a data set.

    Raises:
        UsageError: as ``load_all``; or the network has names already, or there is no such data set.
    """
    from fcifar.runs.inference import Trained

    (found,) = load_all([path], asked)
    if isinstance(found, Trained):
        if dataset is not None:
            raise UsageError(
                f"--dataset names the classes of a state_dict from elsewhere, and {path} has its "
                "own; leave it out"
            )
        return found
    (network,) = with_classes([found], class_names(dataset or DEFAULT, data_dir))
    return network


def class_names(dataset: str, data_dir: Path | None) -> tuple[str, ...]:
    """The classes of a data set, whose images need not be there if it is CIFAR-10 or built in.

    Raises:
        UsageError: there is no such data set.
    """
    from fcifar import data
    from fcifar.export.load import CIFAR10

    root = data.data_root(data_dir)
    summaries = {s.name: s for s in data.list_prepared(root)}
    if dataset == DEFAULT and dataset not in summaries:
        return CIFAR10
    if dataset in summaries and not summaries[dataset].problem:
        return summaries[dataset].classes
    return data.load(dataset, root).classes
