"""The loss between runs: along the line from one to another, and on the plane through three.

At each point but the runs themselves, batch norm has statistics of its own, estimated on training
images, as in a soup. Units of later runs can be put into the order of the first's before.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar import io, random, tree
from fcifar.analysis import interpolation, matching, symmetries
from fcifar.analysis.significance import letters
from fcifar.averaging import STATISTICS
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.models import Variables
from fcifar.recipes.checks import check_count
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch, EvalOutput
from fcifar.train.runtime import Runtime, activate

POINTS = {"path": 25, "plane": 9}  # on the line, and on a side of the grid
_MOST_POINTS = 1000
_MARGIN = 0.25  # around the three runs, of the longer side of the rectangle that holds them
_IMAGES_KEY, _BOOTSTRAP_KEY = random.split(random.key(0))

Progress = Callable[[str, int, int], None]


def check(kind: str, paths: Sequence[Path], models: Sequence[Trained], points: int) -> None:
    """Raise a UsageError unless models are two for a "path" or three for a "plane", and alike."""
    count = {"path": 2, "plane": 3}[kind]
    if len(paths) != count:
        names = {2: "two", 3: "three"}
        raise UsageError(f"--{kind} goes through {names[count]} runs, not {len(paths)}")
    check_count("--points", points, 3, _MOST_POINTS)
    inference.check_alike(paths, models, "compare")


def path(
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    *,
    points: int = POINTS["path"],
    images: int | None = None,
    match: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluate models on the line from one run to another, and measure the barrier between them.

    Args:
        paths: of the two models.
        models: from ``inference.load``.
        dataset: with the training images of both, if they have batch norm.
        split: of the images to evaluate on, "test" or "train".
        points: on the line, with both ends.
        images: evaluate on so many of them, drawn at random; None: on all.
        match: also evaluate the line to the second run with its units in the order of the first's.
        progress: called with what is evaluated, how many are done, and how many there are.

    Returns:
        JSON-serializable values. ``curves`` has loss and accuracy by weight of the second run, and
        the largest rise of the loss and of the error above the line between both ends: first of the
        runs as they are, then with ``match``. ``matching`` says what was permuted.

    Raises:
        UsageError: as ``check``, batch norm needs other training images, or nothing can be matched.
    """
    check("path", paths, models, points)
    evaluate, result = _prepare("path", paths, models, runtime, dataset, split, points, images)
    ends = [[model.variables for model in models]]
    if match:
        with activate(runtime):
            variables, result["matching"] = match_to_first(models)
        ends.append(variables)
    weights = [i / (points - 1) for i in range(points)]
    curves: list[dict[str, Any]] = []
    for i, pair in enumerate(ends):
        outputs = []
        for j, weight in enumerate(weights):
            outputs.append(evaluate(pair, (1 - weight, weight)))
            progress("evaluating", i * points + j + 1, len(ends) * points)
        losses = torch.stack([output.loss for output in outputs])
        correct = torch.stack([output.correct for output in outputs])
        with activate(runtime):
            curves.append(
                {
                    "matched": i == 1,
                    "distance": matching.distance(*pair),
                    "weights": weights,
                    "loss": losses.double().mean(1).tolist(),
                    "accuracy": correct.double().mean(1).tolist(),
                    "loss_barrier": _barrier(losses, weights),
                    "error_barrier": _barrier((~correct).float(), weights),
                }
            )
    first = curves[0]
    for run, end in zip(result["runs"], (0, -1), strict=True):
        run |= {name: first[name][end] for name in ("accuracy", "loss")}
    return io.finite(result | {"curves": curves})


def plane(
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    *,
    points: int = POINTS["plane"],
    images: int | None = None,
    match: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluate models on a grid of the plane through three runs.

    The grid encloses the three with a margin. Coordinates are distances in the space of weights,
    see ``interpolation.corners``. Arguments and errors are those of ``path``, except for:

    Args:
        points: on each side of the grid.
        match: put the units of the second and the third run into the order of the first's.

    Returns:
        JSON-serializable values: ``x`` and ``y`` of the grid, ``loss`` and ``accuracy`` as rows of
        equal y, and ``runs`` with ``x``, ``y``, loss and accuracy of each.
    """
    check("plane", paths, models, points)
    evaluate, result = _prepare("plane", paths, models, runtime, dataset, split, points, images)
    variables = [model.variables for model in models]
    if match:
        with activate(runtime):
            variables, result["matching"] = match_to_first(models)
    try:
        corners = interpolation.corners(variables)
    except ValueError as error:
        raise UsageError(f"--plane: {error}") from error
    low, high = corners.amin(0), corners.amax(0)
    margin = _MARGIN * (high - low).max()
    x, y = (
        torch.linspace(start, end, points, dtype=torch.float64).tolist()
        for start, end in zip((low - margin).tolist(), (high + margin).tolist(), strict=True)
    )
    total, done = points * points + 3, 0

    def figures(weights: tuple[float, ...]) -> dict[str, float]:
        nonlocal done
        output = evaluate(variables, weights)
        done += 1
        progress("evaluating", done, total)
        return {
            "accuracy": output.correct.double().mean().item(),
            "loss": output.loss.double().mean().item(),
        }

    for i, run in enumerate(result["runs"]):
        own_x, own_y = corners[i].tolist()
        run |= {"x": own_x, "y": own_y, **figures(tuple(float(i == j) for j in range(3)))}
    grid = [[figures(interpolation.barycentric(corners, (a, b))) for a in x] for b in y]
    values = {name: [[each[name] for each in row] for row in grid] for name in ("loss", "accuracy")}
    return io.finite(result | {"x": x, "y": y, **values})


def match_to_first(models: Sequence[Trained]) -> tuple[list[Variables], dict[str, Any]]:
    """Put the units of later models into the order of the first's.

    Returns:
        The variables of all, and JSON-serializable values: the number of ``groups`` of units that
        can be permuted, and of ``units`` in them; ``fixed_by``, operations that keep the order of
        other units; and of each model after the first the number of units ``moved``, and the
        ``distance`` of its weights from the first's with that ``before``.

    Raises:
        UsageError: scipy is not installed, or the model has no units that can be permuted.
    """
    first = models[0]
    if importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "--match needs scipy, which is not installed; pip install 'fcifar[matching]', or leave "
            "--match out"
        )
    try:
        found = symmetries.find(first.model)
    except ValueError as error:
        raise UsageError(f"--match: {error}; leave --match out") from error
    if not found.groups:
        why = f" ({', '.join(found.fixed_by)})" if found.fixed_by else ""
        raise UsageError(
            f"{first.recipe.model} has no units that can be permuted{why}; leave --match out"
        )
    variables, matched = [first.variables], []
    for name, model in zip(list(_names(models))[1:], models[1:], strict=True):
        match = matching.match(found, first.variables, model.variables, _assign)
        variables.append(match.variables)
        moved = sum(int((p != torch.arange(len(p))).sum()) for p in match.permutations)
        matched.append(
            {
                "name": name,
                "moved": moved,
                "before": match.distance_before,
                "distance": match.distance,
                "sweeps": match.sweeps,
            }
        )
    sizes = [group.size for group in found.groups]
    return variables, {
        "groups": len(sizes),
        "units": sum(sizes),
        "fixed_by": list(found.fixed_by),
        "runs": matched,
    }


def _assign(gains: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(gains.cpu().numpy(), maximize=True)[1])


def _names(models: Sequence[Trained]) -> list[str]:
    return [name for name, _ in zip(letters(), models, strict=False)]


def _prepare(
    kind: str,
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    points: int,
    images: int | None,
) -> tuple[Callable[[Sequence[Variables], Sequence[float]], EvalOutput], dict[str, Any]]:
    """Return how to evaluate a weighted sum of variables, and what a result begins with."""
    first = models[0]
    normed = any(name.rpartition(".")[2] in STATISTICS for name in first.variables.buffers)
    if normed and dataset.digest != first.dataset_digest:
        raise UsageError(
            f"{dataset.name} is not the data set that {paths[0]} was trained on, "
            f"{first.dataset or 'which is not known'}, whose training images batch norm needs "
            "between runs; leave --dataset out"
        )
    inference.check_images(models, dataset, split)
    data = _drawn(inference.images_of(first, dataset, split), images)

    def evaluate(variables: Sequence[Variables], weights: Sequence[float]) -> EvalOutput:
        mixed = interpolation.combine(variables, weights)
        if normed and sum(weight != 0 for weight in weights) > 1:
            mixed = inference.with_own_statistics(first, runtime, dataset, mixed)
        return inference.examine(first._replace(variables=mixed), runtime, data)

    result = {
        "kind": kind,
        "recipe": first.recipe.name,
        "dataset": dataset.name,
        "split": split,
        "n": len(data.labels),
        "points": points,
        "runs": [
            {
                "name": name,
                "run": str(run),
                "seed": model.seed,
                "params_digest": tree.digest(model.variables.params),
            }
            for name, run, model in zip(_names(models), paths, models, strict=True)
        ],
        "matching": None,
    }
    return evaluate, result


def _drawn(data: Batch, images: int | None) -> Batch:
    """Return so many images, drawn at random, in the order of the data set."""
    count = len(data.labels)
    if images is None:
        return data
    check_count("--images", images, 1, count)
    rows = random.permutation(_IMAGES_KEY, count)[:images].sort().values
    return Batch(data.images[rows], data.labels[rows])


def _barrier(values: Tensor, weights: Sequence[float]) -> dict[str, Any]:
    found = interpolation.barrier(values, weights, _BOOTSTRAP_KEY)
    return {
        "height": found.height,
        "interval95": list(found.interval95),
        "weight": weights[found.at],
    }
