"""Influence of the training images of a run on other images, from its checkpoints."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fcifar import grads, io, random, recipes, tensor_files, tree
from fcifar.analysis import influence
from fcifar.analysis.influence import Checkpoint
from fcifar.data import Dataset
from fcifar.errors import UsageError, shown
from fcifar.models import Variables
from fcifar.recipes.checks import SMALLEST_NUMBER, check_choice, check_count, check_number, refused
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch
from fcifar.train import run_dir
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import split_rows

METHODS = ("tracin", "gauss_newton")
DAMPING, CURVATURE, ITERATIONS = 0.1, 2000, 50
TOLERANCE = 0.01  # of the residual of conjugate gradients, relative to the gradient
MOST_IMAGES = 100
_AT_ONCE = 500  # training images between two calls of progress
_CHUNK = 50  # images of a forward pass, which is fastest on a CPU
_DIRECTIONS = 2**25  # elements of the directions of several images at once, 128 MiB of float32
_CURVATURE_KEY = 6  # after those of train.setup

Progress = Callable[[str, int, int], None]


class Options(NamedTuple):
    """How to compute influence."""

    method: str = "tracin"
    damping: float = DAMPING  # of gauss_newton, added to the diagonal
    curvature: int = CURVATURE  # training images whose Gauss-Newton matrix it is


class Influences(NamedTuple):
    """Scores of all images that a run was trained on, for each of T other images."""

    names: list[str]  # of the T images, see inference.image_names
    images: Tensor  # uint8 [T, 3, H, W]
    labels: Tensor  # int64 [T]
    train_names: list[str]  # of the N training images
    train_rows: Tensor  # int64 [N], rows of dataset.train_images
    train_labels: Tensor  # int64 [N]
    scores: Tensor  # [T, N], positive for an image that lowers the loss


class _Inputs(NamedTuple):
    """Images on the device."""

    test: Batch  # the T images
    train: Batch  # all training images of the data set
    rows: Tensor  # int64 [N], those that the run was trained on


def check(options: Options, top: int) -> None:
    """Raise a UsageError unless options are valid."""
    check_choice("--method", options.method, METHODS)
    check_count("--top", top, 1)
    check_count("--curvature-images", options.curvature, 1)
    check_number("--damping", options.damping)
    if options.damping < SMALLEST_NUMBER:
        raise refused("--damping", options.damping, f"above 0, such as {DAMPING}")


def parse_rows(text: str) -> list[int]:
    """Parse row numbers such as ``3,17``. Raises a UsageError."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) < 12 for part in parts):
        raise UsageError(
            f"--image is {shown(text)}; give row numbers of the split such as 3 or 3,17, as in the "
            "names of fcifar eval --per-example"
        )
    rows = list(dict.fromkeys(int(part) for part in parts))
    if len(rows) > MOST_IMAGES:
        raise UsageError(f"--image has {len(rows)} images; give up to {MOST_IMAGES}")
    return rows


def make(
    path: Path,
    trained: Trained,
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    rows: Sequence[int],
    options: Options = Options(),  # noqa: B008
    *,
    top: int = 10,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Influences, dict[str, Any]]:
    """Compute the influence of all images that a run was trained on, without augmentation.

    ``tracin`` sums over the checkpoints of the run, each with the learning rate of the step before
    it; without any, it uses the final model alone. ``gauss_newton`` uses the final model, and the
    curvature at some of its training images, which its seed draws. Losses are cross-entropy, as in
    an evaluation: label smoothing, class weights and weight decay are left out.

    Args:
        path: a run directory or the file of a model.
        trained: from ``inference.load`` of it.
        dataset: the one that it was trained on.
        split: of the images; for ``valid``, those that training held out.
        rows: of the images in ``test_images`` or ``train_images``.
        top: number of proponents and opponents that are listed.
        progress: called with what is computed, how much is done, and of how much.

    Returns:
        The scores, and JSON-serializable values.

    Raises:
        UsageError: the options, ``rows``, the split or the data set do not fit.
    """
    check(options, top)
    if dataset.digest != trained.dataset_digest:
        raise UsageError(
            f"{dataset.name} is not the data set that {path} was trained on, "
            f"{trained.dataset or 'which is not known'}; the influence is that of its training "
            "images, so prepare that one"
        )
    names, test = _images_of(trained, dataset, split, rows)
    train_rows, _ = split_rows(trained.recipe, trained.seed, dataset.train_labels)
    train = Batch(dataset.train_images, dataset.train_labels)
    with activate(runtime), warnings.catch_warnings():
        # Torch's own, at the first forward-mode derivative of a process.
        warnings.filterwarnings("ignore", r".*torch\.jit\.script. is deprecated")
        outputs = influence.example_logits(
            trained.model,
            preprocess=recipes.make_preprocess(trained.recipe),
            policy=runtime.policy,
        )
        inputs = _Inputs(*tree.on_device((test, train, train_rows), runtime.device))
        if options.method == "tracin":
            moments = list_checkpoints(path, trained, len(train_rows))
            scores = _tracin(outputs, moments, inputs, progress)
            about: dict[str, Any] = {
                "checkpoints": [
                    {"step": moment.step, "learning_rate": moment.learning_rate}
                    for moment in moments
                ]
            }
        else:
            key = random.fold_in(random.key(trained.seed), _CURVATURE_KEY)
            drawn = random.permutation(key, train_rows)[: options.curvature]
            variables = tree.on_device(trained.variables, runtime.device)
            scores, about = _gauss_newton(
                outputs, variables, inputs, drawn.to(runtime.device), options.damping, progress
            )
    all_names = inference.image_names(trained, dataset, "train")
    found = Influences(
        names,
        test.images,
        test.labels,
        [all_names[row] for row in train_rows.tolist()],
        train_rows,
        dataset.train_labels[train_rows],
        scores.cpu(),
    )
    values = {
        "run": str(path),
        "params_digest": tree.digest(trained.variables.params),
        "recipe": trained.recipe.name,
        "dataset": dataset.name,
        "split": split,
        "method": options.method,
        "optimizer": trained.recipe.optimizer,
        **about,
        "train_n": len(train_rows),
        "images": _summarize(found, trained, runtime, top),
    }
    return found, io.finite(values)


class Moment(NamedTuple):
    """A checkpoint to be read, or the final model."""

    step: int | None  # None for the final model
    learning_rate: float
    variables: Callable[[], Variables]  # on the CPU


def list_checkpoints(path: Path, trained: Trained, train_size: int) -> list[Moment]:
    """Return the checkpoints of a run, the earliest first; the final model if it has none.

    Learning rates are those of the recipe's schedule at the step before the checkpoint; the final
    model alone has the weight 1.
    """
    paths = run_dir.list_checkpoints(path) if path.is_dir() else {}
    if not paths:
        return [Moment(None, 1.0, lambda: trained.variables)]
    recipe = trained.recipe
    total = recipes.steps_per_epoch(recipe, train_size) * recipe.epochs
    schedule = recipes.make_schedule(recipe, total)

    def rate(step: int) -> float:
        return float(schedule(torch.tensor(max(step - 1, 0))) if callable(schedule) else schedule)

    def read(file: Path) -> Callable[[], Variables]:
        return lambda: _read_variables(file, trained)

    # The state before the first step has no step before it.
    return [Moment(step, rate(step), read(paths[step])) for step in sorted(paths) if step]


def _read_variables(file: Path, trained: Trained) -> Variables:
    """Read the parameters and buffers that a checkpoint's steps trained with."""
    tensors, _ = tensor_files.read(file)
    flat = {
        name.removeprefix(start): value
        for start in ("state.variables.params.", "state.variables.buffers.")
        for name, value in tensors.items()
        if name.startswith(start)
    }
    like = {**trained.variables.params, **trained.variables.buffers}
    fitted = tensor_files.fit(file, flat, like)
    params, buffers = ({name: fitted[name] for name in part} for part in trained.variables)
    return Variables(params, buffers)


def _images_of(
    trained: Trained, dataset: Dataset, split: str, rows: Sequence[int]
) -> tuple[list[str], Batch]:
    """Return the names and the images of some rows of a split."""
    part, whole = inference.rows_of(trained, dataset, split)
    count = len(getattr(dataset, f"{part}_labels"))
    accepted = torch.arange(count)[whole]
    for row in rows:
        if row not in accepted:
            held_out = ", and is not one of those held out" if row < count else ""
            raise UsageError(
                f"--image {row} is not an image of the {split} split of {dataset.name}{held_out}; "
                f"give rows from {int(accepted[0]) if len(accepted) else 0} to {count - 1}"
            )
    names = dict(
        zip(accepted.tolist(), inference.image_names(trained, dataset, split), strict=True)
    )
    images, labels = (getattr(dataset, f"{part}_{name}") for name in Batch._fields)
    chosen = torch.tensor(rows)
    return [names[row] for row in rows], Batch(images[chosen], labels[chosen])


def _tracin(
    outputs: influence.Outputs,
    moments: Sequence[Moment],
    inputs: _Inputs,
    progress: Progress,
) -> Tensor:
    score = influence.tracin(outputs, chunk_size=_CHUNK)
    test, train, rows = inputs
    parts, done = rows.split(_AT_ONCE), 0
    total = torch.zeros(len(test.labels), len(rows), device=rows.device)
    for moment in moments:
        params, buffers = tree.on_device(moment.variables(), rows.device)
        checkpoint = Checkpoint(moment.learning_rate, params, (buffers,))
        columns = []
        for part in parts:
            images = Batch(train.images[part], train.labels[part])
            groups = _groups(params, test)
            columns.append(torch.cat([score([checkpoint], group, images) for group in groups]))
            done += 1
            progress("tracing training images", done, len(parts) * len(moments))
        total += torch.cat(columns, dim=1)
    return total


def _gauss_newton(
    outputs: influence.Outputs,
    variables: Variables,
    inputs: _Inputs,
    drawn: Tensor,
    damping: float,
    progress: Progress,
) -> tuple[Tensor, dict[str, Any]]:
    """Solve for each image, then multiply; return the scores, and how it was solved."""
    params, buffers = variables
    test, train, rows = inputs
    matrix = influence.damped(outputs, damping=damping, chunk_size=_CHUNK)
    curved = Batch(train.images[drawn], train.labels[drawn])
    gradients = grads.per_example(influence.example_loss(outputs))
    dots = influence.gradient_dots(outputs, chunk_size=_CHUNK)
    step = vmap(
        lambda state: influence.cg_step(
            lambda vector: matrix(params, vector, curved, buffers), state
        )
    )
    groups, scores, counts, worst = _groups(params, test), [], [], 0.0
    for i, group in enumerate(groups):
        state = vmap(influence.cg_init)(gradients(params, group, buffers))
        first, residual, count = state.squared, 1.0, 0
        while residual > TOLERANCE and count < ITERATIONS:
            state, count = step(state), count + 1
            relative = (state.squared / first).nan_to_num(0.0).max()
            residual = float(relative) ** 0.5
            progress("conjugate gradients", i * ITERATIONS + count, len(groups) * ITERATIONS)
        counts.append(count)
        worst = max(worst, residual)
        parts = []
        for done, part in enumerate(rows.split(_AT_ONCE)):
            images = Batch(train.images[part], train.labels[part])
            parts.append(dots(params, state.solution, images, buffers) / len(rows))
            each = -(-len(rows) // _AT_ONCE)
            progress("training images", i * each + done + 1, len(groups) * each)
        scores.append(torch.cat(parts, dim=1))
    about = {
        "damping": damping,
        "curvature_images": len(drawn),
        "iterations": max(counts),
        "residual": worst,
    }
    return torch.cat(scores), about


def _groups(params: Any, test: Batch) -> list[Batch]:
    """Divide images so that their gradients fit the memory."""
    size = sum(leaf.numel() for leaf in tree.leaves(params))
    return list(grads.chunks(test, max(1, _DIRECTIONS // max(size, 1))))


# Results -----------------------------------------------------------------------------------------


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of scores [N]: proponents, the highest first, and opponents, the lowest first.

    A proponent's score is above 0, and an opponent's below 0.
    """
    order = scores.argsort(descending=True, stable=True)
    reverse = scores.argsort(stable=True)
    return order[scores[order] > 0], reverse[scores[reverse] < 0]


def _summarize(
    found: Influences, trained: Trained, runtime: Runtime, top: int
) -> list[dict[str, Any]]:
    """Return each image with its prediction, its proponents and its opponents."""
    examples = inference.examine(trained, runtime, Batch(found.images, found.labels))
    classes, result = trained.classes, []

    def listed(image: int, rows: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "id": found.train_names[row],
                "label": classes[int(found.train_labels[row])],
                "score": found.scores[image, row].item(),
            }
            for row in rows[:top].tolist()
        ]

    for i, name in enumerate(found.names):
        proponents, opponents = ranked(found.scores[i])
        probabilities = examples.logits[i].softmax(-1)
        predicted = int(examples.logits[i].argmax())
        result.append(
            {
                "id": name,
                "label": classes[int(found.labels[i])],
                "prediction": classes[predicted],
                "confidence": probabilities[predicted].item(),
                "loss": examples.loss[i].item(),
                "proponents": listed(i, proponents),
                "opponents": listed(i, opponents),
            }
        )
    return result


def tabulate(found: Influences, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a table with a row for each training image and a column of scores for each image."""
    labels = found.train_labels.numpy()
    return {
        "id": np.array(found.train_names),
        "label": labels,
        "label_name": np.array(classes)[labels],
        **{name: found.scores[i].numpy() for i, name in enumerate(found.names)},
    }
