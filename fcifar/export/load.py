"""Networks from anybody: runs and files of ours, which say what they are, and saved state_dicts."""

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from fcifar import recipes, tensor_files
from fcifar.errors import UsageError
from fcifar.export import match_state_dict, state_dict
from fcifar.export.state_dict import StateDict
from fcifar.recipes import Recipe
from fcifar.runs import inference
from fcifar.runs.inference import Trained

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Saved(NamedTuple):
    """The values of a model whose class names are not known yet."""

    path: Path
    recipe: Recipe  # its network and normalisation
    found: tuple[StateDict, ...]


def says_what_it_is(path: Path) -> bool:
    """Whether ``inference.load`` is to read ``path``: a directory, or a safetensors file of ours.

    Also where there is nothing, or nothing whole, of which it gives a better account.
    """
    if not path.is_file():
        return True
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return tensor_files.HEAD in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return True


def load(path: Path, recipe: Recipe | None) -> Trained | Saved:
    """What is at ``path``.

    Args:
        recipe: the model of a state_dict, and its preprocessing; None if not given.

    Raises:
        UsageError: there is no such file, it does not hold a model, or its model was not given.
        ExternalError: it is damaged.
    """
    if says_what_it_is(path):
        return inference.load(path)
    found = state_dict.read(path)
    if recipe is None:
        fitting_models = list(match_state_dict.fitting_models(found, len(CIFAR10)))
        hint = f"; its names and shapes are those of {fitting_models[0]}" if fitting_models else ""
        raise UsageError(
            f"{path} does not record its model{hint}; pass --model "
            f"{fitting_models[0] if fitting_models else 'NAME'} or --recipe NAME"
        )
    return Saved(path, recipe, found)


def with_classes(
    found: Trained | Saved, classes: tuple[str, ...]
) -> tuple[Trained, tuple[str, ...]]:
    """A network with its class names, and notes for a person; ``Trained`` has its own and keeps it.

    What it was trained on stays unknown: ``dataset`` and ``dataset_digest`` are empty, ``seed`` 0.

    Raises:
        UsageError: the values are not those of the recipe's network with so many classes.
    """
    if isinstance(found, Trained):
        return found, ()
    variables, notes = match_state_dict.fit(
        found.found, found.recipe, len(classes), str(found.path)
    )
    model = recipes.make_model(found.recipe, len(classes))
    return Trained(found.recipe, model, variables, classes, "", "", 0), notes
