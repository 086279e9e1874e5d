"""Evaluation and prediction with trained models."""

import json
import math
from collections.abc import Callable, Sequence
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
from fcifar.models import Buffers, Model, Variables
from fcifar.recipes import Recipe
from fcifar.step import Batch, EvalOutput, make_eval_step
from fcifar.train import evaluate as evaluation
from fcifar.train import run_dir
from fcifar.train.checkpoint import fit_model
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import split_rows, with_statistics

DIGITS = 5  # of a row number, at least, so that names sort like rows
_SAME = ("model", "model_options", "mean", "std")  # settings that models in one space share


class Trained(NamedTuple):
    """A trained model, and what it was trained on."""

    recipe: Recipe
    model: Model
    variables: Variables  # on the CPU
    classes: tuple[str, ...]
    dataset: str  # empty if not known, like dataset_digest
    dataset_digest: str
    seed: int
    soup: str = ""  # of a mean of several models: what they are, as JSON
    temperature: float = 1.0  # what ``model`` divides its logits by, see ``with_temperature``


def load(path: Path, *, average: bool = False) -> Trained:
    """Load the final model of a run, from its directory or a ``final.safetensors`` from one.

    Args:
        path: a run directory, or a file of a model that fcifar wrote.
        average: load the average that a run has beside its final model.

    Raises:
        UsageError: there is no model at ``path``, or no average.
        ExternalError: the file is damaged or missing.
    """
    file = path / (run_dir.AVERAGE if average else run_dir.FINAL) if path.is_dir() else path
    if average and not path.is_dir():
        raise UsageError(
            f"--average is of a run directory, and {path} is not one; give a run, or the file "
            f"{run_dir.AVERAGE} of one without --average"
        )
    if path.is_dir():
        recorded = run_dir.read_manifest(path)["recipe"]
        if average and not (recorded.get("ema_decay") or recorded.get("swa_start")):
            raise UsageError(
                f"{path} has no average beside its model: its recipe has neither ema_decay nor "
                "swa_start; leave --average out"
            )
        if not file.exists() and run_dir.is_finished(path):
            raise ExternalError(
                f"{file} is gone, though the run is finished; restore it, or train again "
                f"with fcifar reproduce {path} --out DIR"
            )
        if not file.exists():
            raise UsageError(f"{path} is not finished; resume it with fcifar train --resume {path}")
    elif not path.is_file():
        raise UsageError(f"there is no {path}; give a run directory or a {run_dir.FINAL}")
    tensors, metadata = tensor_files.read(file)
    try:
        recipe = recipes.from_dict(json.loads(metadata["recipe"]))
        classes = json.loads(metadata["classes"])
        dataset, digest = metadata["dataset"], metadata["dataset_digest"]
        seed, soup = int(metadata["seed"]), metadata.get("soup", "")
        temperature = float(metadata.get("temperature", 1))
        if not 0 < temperature < math.inf:
            raise ValueError(f"its temperature is {temperature}")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise TypeError("its classes are not a list of names")
    except recipes.NotImportableError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file} does not record its model ({error!r}); pass a {run_dir.FINAL}"
        ) from error
    model = recipes.make_model(recipe, len(classes))
    like = model.init(torch.zeros(2, dtype=torch.int64))
    variables = fit_model(file, tensors, like)
    trained = Trained(recipe, model, variables, tuple(classes), dataset, digest, seed, soup)
    return trained if temperature == 1 else with_temperature(trained, temperature)


def with_temperature(trained: Trained, temperature: float) -> Trained:
    """Return the model with logits divided by a temperature, above 0."""
    apply = trained.model.apply

    def scaled(*args: Any, **options: Any) -> tuple[Tensor, Buffers]:
        logits, buffers = apply(*args, **options)
        return logits / temperature, buffers

    model = trained.model._replace(apply=scaled)
    return trained._replace(model=model, temperature=trained.temperature * temperature)


def images_of(trained: Trained, dataset: Dataset, split: str) -> Batch:
    """Return the images and labels of a split."""
    part, rows = rows_of(trained, dataset, split)
    images, labels = (getattr(dataset, f"{part}_{name}") for name in Batch._fields)
    return Batch(images[rows], labels[rows])


def image_names(trained: Trained, dataset: Dataset, split: str) -> list[str]:
    """Return names for the images of a split: ``test/00042`` is ``dataset.test_images[42]``."""
    part, rows = rows_of(trained, dataset, split)
    count = len(getattr(dataset, f"{part}_labels"))
    digits = max(DIGITS, len(str(count - 1)))
    return [f"{part}/{row:0{digits}}" for row in torch.arange(count)[rows].tolist()]


def rows_of(trained: Trained, dataset: Dataset, split: str) -> tuple[str, Tensor | slice]:
    """Return the part of a data set that holds a split, and the rows of the split in it.

    Validation images are those held out in training, if it was on ``dataset`` and held out any,
    else the data set's own.

    Raises:
        UsageError: there is no such split, or the data set has other classes than the model.
    """
    if dataset.classes != trained.classes:
        raise UsageError(
            f"{dataset.name} has the classes {names_of(dataset.classes)}, but the model has "
            f"{names_of(trained.classes)}; choose a data set with the same classes"
        )
    if split not in ("test", "train", "valid"):
        raise UsageError(f"--split is {split!r}; it must be test, train or valid")
    if split == "train" and not len(dataset.train_labels):
        raise UsageError(f"{dataset.name} is a test set without training images; use --split test")
    if split != "valid" or _has_own_valid(trained, dataset):
        return split, slice(None)
    if not trained.dataset:
        raise UsageError(
            "--split valid is what training held out, and this model does not record that; use "
            "--split test"
        )
    if dataset.digest != trained.dataset_digest or not trained.recipe.holds_out:
        raise UsageError(
            f"--split valid is what training held out of {trained.dataset}; it held out nothing of "
            f"{dataset.name}, which has no validation images of its own either; use --split test"
        )
    return "train", split_rows(trained.recipe, trained.seed, dataset.train_labels)[1]


def _has_own_valid(trained: Trained, dataset: Dataset) -> bool:
    """Whether the validation images of a model are the data set's own."""
    held_out = dataset.digest == trained.dataset_digest and trained.recipe.holds_out
    return len(dataset.valid_labels) > 0 and not held_out


def check_images(models: Sequence[Trained], dataset: Dataset, split: str) -> None:
    """Raise a UsageError unless all models can be evaluated on the same images of a split."""
    own_valid = all(_has_own_valid(trained, dataset) for trained in models)
    if split == "valid" and len(models) > 1 and not own_valid:
        raise UsageError(
            "--split valid is another part of the images for each seed; use test or train, or "
            "give one run"
        )
    for trained in models:
        rows_of(trained, dataset, split)


def check_alike(paths: Sequence[Path], models: Sequence[Trained], verb: str) -> None:
    """Raise a UsageError unless models of ``paths`` have parameters that can be added.

    They have the same model, normalisation, classes, data set and frozen parameters, and no
    temperature. ``verb`` is what is to be done with them: "average".
    """
    first = models[0]
    for path, model in zip(paths, models, strict=True):
        for name in _SAME:
            one, other = (getattr(each.recipe, name) for each in (first, model))
            if one != other:
                raise UsageError(
                    f"{path} has the {name} {other}, but {paths[0]} has {one}; {verb} runs of one "
                    "model and normalisation"
                )
        if model.classes != first.classes:
            raise UsageError(
                f"{path} has the classes {names_of(model.classes)}, but {paths[0]} has "
                f"{names_of(first.classes)}; {verb} runs with the same classes"
            )
        if model.temperature != 1:
            raise UsageError(
                f"{path} has a temperature, which is of one model; {verb} the runs, then calibrate"
            )
        if model.dataset_digest != first.dataset_digest:
            raise UsageError(
                f"{path} was trained on other images ({model.dataset or 'not known'}) than "
                f"{paths[0]} ({first.dataset}); {verb} runs of one data set"
            )
        if tree.structure(model.variables) != tree.structure(first.variables):
            raise UsageError(
                f"{path} has other frozen parameters than {paths[0]}; {verb} runs with the same "
                "--set freeze"
            )


def with_own_statistics(
    trained: Trained, runtime: Runtime, dataset: Dataset, variables: Variables
) -> Variables:
    """Return other variables of a model with batch-norm statistics of their own, on the CPU.

    They are estimated on the images that the model was trained on, see
    ``train.setup.with_statistics``.
    """
    rows, _ = split_rows(trained.recipe, trained.seed, dataset.train_labels)
    with activate(runtime):
        there, images = tree.on_device((variables, dataset.train_images), runtime.device)
        found = with_statistics(
            trained.model,
            there,
            images,
            rows,
            seed=trained.seed,
            recipe=trained.recipe,
            policy=runtime.policy,
        )
        return tree.on_device(found, "cpu")


def evaluate(
    trained: Trained, runtime: Runtime, dataset: Dataset, split: str, views: Views = tta.NONE
) -> tuple[dict[str, Any], EvalOutput]:
    """Evaluate a model on a split; return JSON-serializable metrics, and each example's result."""
    data = images_of(trained, dataset, split)
    examples = examine(trained, runtime, data, views)
    metrics = predictions.summarize(examples, data.labels, dataset.classes)
    return {**metrics, "params_digest": tree.digest(trained.variables.params)}, examples


def find_views(name: str) -> Views:
    """Return a test-time augmentation by name. Raises a UsageError if there is none."""
    if name not in tta.VIEWS:
        raise UsageError(f"--tta is {shown(name)}; it must be {' or '.join(tta.VIEWS)}")
    return tta.VIEWS[name]


def evaluate_views(
    trained: Trained, runtime: Runtime, dataset: Dataset, split: str, name: str
) -> dict[str, Any]:
    """Evaluate with a test-time augmentation; return ``tta``, its name, and metrics of it.

    Empty for "none". Raises a UsageError if there is no such augmentation.
    """
    views = find_views(name)
    if name == "none":
        return {}
    metrics, _ = evaluate(trained, runtime, dataset, split, views)
    return {"tta": name, **predictions.of_views(metrics)}


def examine(trained: Trained, runtime: Runtime, data: Batch, views: Views = tta.NONE) -> EvalOutput:
    """Evaluate a model on any number of images; return the result of each, on the CPU."""
    size = evaluation.batch_size_of(views, runtime.device)
    return _apply(make_eval_step, trained, runtime, data, size, views=views)


def _apply(
    make_step: Callable[..., Any],
    trained: Trained,
    runtime: Runtime,
    data: Batch,
    batch_size: int = evaluation.BATCH_SIZE,
    **options: Any,
) -> Any:
    preprocess = recipes.make_preprocess(trained.recipe)
    with activate(runtime):
        step = make_step(trained.model, preprocess=preprocess, policy=runtime.policy, **options)
        variables, data = tree.on_device((trained.variables, data), runtime.device)
        return evaluation.evaluate(step, variables, data, batch_size=batch_size)


def stack_logits(
    first: EvalOutput, others: Sequence[Trained], runtime: Runtime, data: Batch
) -> Tensor:
    """Return the logits [R, N, C] of a model, given, and of others, on the CPU."""
    logits = [examine(trained, runtime, data).logits for trained in others]
    return torch.stack([first.logits, *logits])


def score(
    trained: Trained, runtime: Runtime, dataset: Dataset, split: str, logits: Tensor
) -> Examined:
    """Score each image of a split by one model, and by several if ``logits`` [R, N, C] has more."""
    data = images_of(trained, dataset, split)
    gradients = GRADIENTS if runtime.device == "cpu" else 32 * GRADIENTS  # 1 GiB of float32
    scores = _apply(make_score_step, trained, runtime, data, gradients=gradients)
    with activate(runtime):
        together = ensembles.examine(logits, data.labels) if len(logits) > 1 else None
    return Examined(image_names(trained, dataset, split), data.labels, scores, together)


def predict(trained: Trained, runtime: Runtime, images: Tensor) -> Tensor:
    """Return the logits [N, C] of images, uint8 [N, 3, 32, 32], on the CPU.

    Bit for bit the same as in an evaluation, because the batches have the same size.
    """
    if not len(images):
        raise ValueError("predict needs at least one image")
    labels = torch.zeros(len(images), dtype=torch.int64)  # placeholders
    return examine(trained, runtime, Batch(images, labels)).logits
