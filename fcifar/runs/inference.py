"""Trained models, read from a run directory or a file: evaluation and prediction."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import recipes, tensor_files, tree
from fcifar.analysis import ensembles, predictions
from fcifar.analysis.example_scores import GRADIENTS, make_score_step
from fcifar.analysis.score_tables import Examined
from fcifar.augment import tta
from fcifar.augment.tta import Views
from fcifar.data import Dataset
from fcifar.errors import ExternalError, UsageError, names_of, shown
from fcifar.models import Model, Variables
from fcifar.recipes import Recipe
from fcifar.step import Batch, EvalOutput, make_eval_step
from fcifar.train import evaluate as evaluation
from fcifar.train import run_dir
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import split_rows

DIGITS = 5  # of a row number at least, so that names sort as rows do


class Trained(NamedTuple):
    """A network with its values, and what they were trained on."""

    recipe: Recipe
    model: Model
    variables: Variables  # on the CPU
    classes: tuple[str, ...]
    dataset: str  # empty where it is not known, as its digest is then
    dataset_digest: str
    seed: int


def load(path: Path) -> Trained:
    """The network that a run ended with.

    Args:
        path: a run directory, or a ``final.safetensors`` from one.

    Raises:
        UsageError: there is no such thing at ``path``.
        ExternalError: the file is damaged, or gone.
    """
    if path.is_dir():
        run_dir.read_manifest(path)
        file = path / run_dir.FINAL
        if not file.exists() and (path / run_dir.REPORT).exists():
            raise ExternalError(
                f"{file} is gone, though the run is finished; restore it, or train again "
                f"with fcifar reproduce {path} --out DIR"
            )
        if not file.exists():
            raise UsageError(f"{path} is not finished; resume it with fcifar train --resume {path}")
    elif path.is_file():
        file = path
    else:
        raise UsageError(f"there is no {path}; give a run directory or a {run_dir.FINAL}")
    tensors, metadata = tensor_files.read(file)
    recipe, classes, dataset, digest, seed = _read_head(file, metadata)
    model = recipes.make_model(recipe, len(classes))
    like = model.init(torch.zeros(2, dtype=torch.int64))
    flat = tensor_files.fit(file, tensors, {**like.params, **like.buffers})
    variables = Variables(
        {name: flat[name] for name in like.params}, {name: flat[name] for name in like.buffers}
    )
    return Trained(recipe, model, variables, classes, dataset, digest, seed)


def _read_head(
    file: Path, metadata: dict[str, Any]
) -> tuple[Recipe, tuple[str, ...], str, str, int]:
    """Recipe, classes, data set, its digest, and seed."""
    try:
        recipe = recipes.from_dict(json.loads(metadata["recipe"]))
        classes = json.loads(metadata["classes"])
        dataset, digest, seed = (metadata[n] for n in ("dataset", "dataset_digest", "seed"))
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise TypeError("its classes are no list of names")
        return recipe, tuple(classes), str(dataset), str(digest), int(seed)
    except recipes.NotImportableError:  # which says what to do
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} does not record its model ({error!r}); pass a {run_dir.FINAL}"
        ) from error


def images_of(network: Trained, dataset: Dataset, split: str) -> Batch:
    """The images of a split and their labels. Raises as ``rows_of``."""
    part, rows = rows_of(network, dataset, split)
    images, labels = (getattr(dataset, f"{part}_{name}") for name in Batch._fields)
    return Batch(images[rows], labels[rows])


def image_names(network: Trained, dataset: Dataset, split: str) -> list[str]:
    """The name of each image of a split: ``test/00042`` is ``dataset.test_images[42]``.

    Raises as ``rows_of``.
    """
    part, rows = rows_of(network, dataset, split)
    count = len(getattr(dataset, f"{part}_labels"))
    digits = max(DIGITS, len(str(count - 1)))
    return [f"{part}/{row:0{digits}}" for row in torch.arange(count)[rows].tolist()]


def rows_of(network: Trained, dataset: Dataset, split: str) -> tuple[str, Tensor | slice]:
    """The images of a split (test, train or valid), as a part of a data set and rows in it.

    Validation images are those that training held out of the training images of the same data set,
    else those that the data set has of its own.

    Raises:
        UsageError: there is no such split, no validation images of the network in ``dataset``, or
            the data set has other classes than the network.
    """
    if dataset.classes != network.classes:
        raise UsageError(
            f"{dataset.name} has the classes {names_of(dataset.classes)}, but the model knows "
            f"{names_of(network.classes)}; choose a data set with the same classes"
        )
    if split not in ("test", "train", "valid"):
        raise UsageError(f"--split is {split!r}; it must be test, train or valid")
    if split == "train" and not len(dataset.train_labels):
        raise UsageError(f"{dataset.name} is a test set without training images; use --split test")
    if split != "valid" or is_given(network, dataset):
        return split, slice(None)
    if not network.dataset:
        raise UsageError(
            "--split valid is what training held out, and this model does not say what that "
            "was; use --split test"
        )
    if dataset.digest != network.dataset_digest or not network.recipe.valid_fraction:
        raise UsageError(
            f"--split valid is the part of {network.dataset} that training held out, and of "
            f"{dataset.name} it held none out, nor has that validation images of its own; use "
            "--split test"
        )
    return "train", split_rows(network.recipe, network.seed, dataset.train_labels)[1]


def is_given(network: Trained, dataset: Dataset) -> bool:
    """Whether the validation images of a network in ``dataset`` are those that the set has."""
    held_out = dataset.digest == network.dataset_digest and network.recipe.valid_fraction > 0
    return len(dataset.valid_labels) > 0 and not held_out


def check_images(networks: Sequence[Trained], dataset: Dataset, split: str) -> None:
    """Check that all models can be evaluated on the same images.

    Raises:
        UsageError: there is no such split, the data set has other classes than one of them, or
            several are asked about images that training held out, which are others for each.
    """
    given = all(is_given(network, dataset) for network in networks)
    if split == "valid" and len(networks) > 1 and not given:
        raise UsageError(
            "--split valid is another part of the images for each seed; use test or train, or "
            "give one run"
        )
    for network in networks:
        rows_of(network, dataset, split)


def evaluate(
    network: Trained, runtime: Runtime, dataset: Dataset, split: str
) -> tuple[dict[str, Any], EvalOutput]:
    """Figures of a network on a split of a data set, as values that JSON holds, and each example.

    Raises:
        UsageError: as ``rows_of``.
    """
    data = images_of(network, dataset, split)
    examples = examine(network, runtime, data)
    figures = {
        **predictions.summarize(examples, data.labels, dataset.classes),
        "params_digest": tree.digest(network.variables.params),
    }
    return figures, examples


def find_views(name: str) -> Views:
    """The test-time augmentation of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in tta.VIEWS:
        raise UsageError(f"--tta is {shown(name)}; it must be {' or '.join(tta.VIEWS)}")
    return tta.VIEWS[name]


def evaluate_views(
    network: Trained, runtime: Runtime, dataset: Dataset, split: str, name: str
) -> dict[str, Any]:
    """Figures with a test-time augmentation: ``tta``, its name, and what belongs to it.

    Nothing for "none".

    Raises:
        UsageError: there is no such augmentation; or as ``rows_of``.
    """
    views = find_views(name)
    if name == "none":
        return {}
    data = images_of(network, dataset, split)
    examples = examine(network, runtime, data, views)
    figures = predictions.summarize(examples, data.labels, dataset.classes)
    return {"tta": name, **predictions.of_views(figures)}


def examine(network: Trained, runtime: Runtime, data: Batch, views: Views = tta.NONE) -> EvalOutput:
    """What a network makes of each of any number of images, on the CPU."""
    with activate(runtime):
        step = make_eval_step(
            network.model,
            preprocess=recipes.make_preprocess(network.recipe),
            policy=runtime.policy,
            views=views,
        )
        there = tree.on_device((network.variables, data), runtime.device)
        return evaluation.evaluate(step, *there)


def stack_logits(
    first: EvalOutput, others: Sequence[Trained], runtime: Runtime, data: Batch
) -> Tensor:
    """[R, N, C], on the CPU: the logits of a first network, and of others on the same images."""
    rest = [examine(network, runtime, data).logits for network in others]
    return torch.stack([first.logits, *rest])


def score(
    network: Trained, runtime: Runtime, dataset: Dataset, split: str, logits: Tensor
) -> Examined:
    """The scores of a network for each image of a split, and what several networks make of it.

    Args:
        logits: [R, N, C], those of all networks, which it is one of.
    """
    data = images_of(network, dataset, split)
    with activate(runtime):
        step = make_score_step(
            network.model,
            preprocess=recipes.make_preprocess(network.recipe),
            policy=runtime.policy,
            gradients=GRADIENTS if runtime.device == "cpu" else 32 * GRADIENTS,  # 1 GiB of float32
        )
        there = tree.on_device((network.variables, data), runtime.device)
        return Examined(
            names=image_names(network, dataset, split),
            labels=data.labels,
            scores=evaluation.evaluate(step, *there),
            together=ensembles.examine(logits, data.labels) if len(logits) > 1 else None,
        )


def predict(network: Trained, runtime: Runtime, images: Tensor) -> Tensor:
    """The logits of a network for any number of images.

    They are computed as an evaluation computes them, in batches of its size, for the last bits of
    a matrix product depend on the number of its rows. So an image has the same logits here, bit
    for bit, as in the evaluation of any data set that holds it.

    Args:
        images: uint8 [N, 3, 32, 32].

    Returns:
        [N, C] on the CPU.
    """
    if not len(images):
        raise ValueError("predict needs at least one image")
    labels = torch.zeros(len(images), dtype=torch.int64)  # not known, and not looked at
    return examine(network, runtime, Batch(images, labels)).logits
