"""Load models from runs, from safetensors files of ours, and from state_dicts from elsewhere."""

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from fcifar import recipes, tensor_files
from fcifar.errors import UsageError
from fcifar.export import match_state_dict, state_dict
from fcifar.export.match_state_dict import Initial
from fcifar.export.state_dict import StateDict
from fcifar.recipes import Recipe
from fcifar.runs import inference
from fcifar.runs.inference import Trained

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Saved(NamedTuple):
    """A state_dict whose class names are not known yet."""

    path: Path
    recipe: Recipe  # of the model and the normalisation
    found: tuple[StateDict, ...]


def says_what_it_is(path: Path) -> bool:
    """Whether ``path`` records its model: a directory, or a safetensors file of ours.

    Also True if it is missing or damaged, which ``inference.load`` reports.
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


def load(path: Path, recipe: Recipe | None, *, average: bool = False) -> Trained | Saved:
    """Load the model at ``path``.

    Args:
        recipe: of the model and the preprocessing of a state_dict.
        average: load the average of a run, see ``inference.load``.

    Raises:
        UsageError: there is no such file, it does not hold a model, or the recipe is missing.
        ExternalError: it is damaged.
    """
    if average or says_what_it_is(path):
        return inference.load(path, average=average)
    found = state_dict.read(path)
    if recipe is None:
        name = next(match_state_dict.fitting_models(found, len(CIFAR10)), None)
        hint = f"; its names and shapes are those of {name}" if name else ""
        raise UsageError(
            f"{path} does not record its model{hint}; pass --model {name or 'NAME'} or "
            "--recipe NAME"
        )
    return Saved(path, recipe, found)


def with_classes(
    found: Trained | Saved, classes: tuple[str, ...]
) -> tuple[Trained, tuple[str, ...]]:
    """Add class names to a state_dict; return the model, and notes for the user.

    Raises:
        UsageError: the values do not fit the recipe's model with this number of classes.
    """
    if isinstance(found, Trained):
        return found, ()
    path, recipe, candidates = found
    variables, notes = match_state_dict.fit(candidates, recipe, len(classes), str(path))
    model = recipes.make_model(recipe, len(classes))
    return Trained(recipe, model, variables, classes, "", "", 0), notes


def load_initial(path: Path, recipe: Recipe, num_classes: int, *, partial: bool) -> Initial:
    """Load the values to begin training a recipe with, from a run or a file.

    Arguments are those of ``match_initial``.

    Raises:
        UsageError: there is no such file, or it does not fit the recipe's model.
        ExternalError: it is damaged.
    """
    if says_what_it_is(path):
        variables = inference.load(path).variables
        found = (StateDict({**variables.params, **variables.buffers}),)
    else:
        found = state_dict.read(path)
    return match_state_dict.match_initial(found, recipe, num_classes, str(path), partial=partial)
