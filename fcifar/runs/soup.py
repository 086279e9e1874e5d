"""Soups: the mean of the weights of several trained models.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", https://arxiv.org/abs/2203.05482. Models average well if they
have a part of their training in common; those of different initialisations do not.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar import averaging, io, recipes, tensor_files, tree
from fcifar.analysis.significance import letters
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.models import Variables
from fcifar.recipes.checks import check_choice
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.train.runtime import Runtime

METHODS = ("mean", "greedy")
_FIGURES = ("accuracy", "loss")


def check(paths: Sequence[Path], models: Sequence[Trained], method: str) -> None:
    """Raise a UsageError unless the models of ``paths`` can be averaged by ``method``."""
    check_choice("--method", method, METHODS)
    if len(models) < 2:
        raise UsageError(
            f"{paths[0]} alone cannot be averaged; give two runs or more, or a group of runs"
        )
    inference.check_alike(paths, models, "average")


def held_out(models: Sequence[Trained], dataset: Dataset) -> tuple[str, Tensor | slice] | None:
    """Return the validation images of all models, as ``inference.rows_of``; None without common
    ones.
    """
    try:
        found = [inference.rows_of(model, dataset, "valid") for model in models]
    except UsageError:
        return None
    (part, rows), *others = found
    for other_part, other in others:
        if isinstance(rows, Tensor) and isinstance(other, Tensor):
            is_same = torch.equal(rows, other)
        else:
            is_same = isinstance(rows, slice) and isinstance(other, slice)
        if part != other_part or not is_same:
            return None
    return part, rows


def make(
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    method: str,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Trained, dict[str, Any]]:
    """Average models, with batch-norm statistics estimated again on training images.

    ``mean`` takes all of them. ``greedy`` tries them from the highest accuracy on validation images
    to the lowest, and keeps each that does not lower the accuracy of the mean there. The test
    images choose nothing: they measure the result, and with ``mean`` its growth if there are no
    common validation images.

    Args:
        paths: of the models.
        models: from ``inference.load``.
        dataset: the one that they were trained on.
        method: one of ``METHODS``.
        progress: called with what is evaluated, how many are done, and how many there are.

    Returns:
        The soup, and JSON-serializable values: ``ingredients`` in the order in which they are
        tried, each with its figures alone and with those of the soup with it; ``test`` has the
        figures of the soup and of the ingredient that is best alone.

    Raises:
        UsageError: as ``check``, the data set is another one, or ``greedy`` has no validation
            images that every model has left out.
    """
    check(paths, models, method)
    first = models[0]
    if dataset.digest != first.dataset_digest:
        raise UsageError(
            f"{dataset.name} is not the data set that {paths[0]} was trained on, {first.dataset}, "
            "whose training images the batch norm of a soup needs; prepare that one"
        )
    common = held_out(models, dataset)
    if common is None and method == "greedy":
        raise UsageError(
            "a greedy soup chooses on validation images that every run has left out, and "
            f"{paths[0]} and the others have none in common; train them with --valid-fraction 0.1 "
            "and one seed, or with --set valid=given, or give --method mean"
        )
    split = "valid" if common else "test"
    total, done = 2 * len(models) + (2 if common else 0), 0

    def evaluate(variables: Variables, split: str) -> dict[str, Any]:
        nonlocal done
        soup = first._replace(variables=variables)
        metrics, _ = inference.evaluate(soup, runtime, dataset, split)
        done += 1
        progress("evaluating", done, total)
        return metrics

    refresh = functools.partial(inference.with_own_statistics, first, runtime, dataset)
    alone = [evaluate(model.variables, split) for model in models]
    order = list(range(len(models)))
    if method == "greedy":
        order.sort(key=lambda i: -alone[i]["accuracy"])
    way: list[dict[str, Any]] = []

    def score(mean: Variables) -> float:
        way.append(evaluate(refresh(mean) if way else mean, split))
        return way[-1]["accuracy"]

    candidates = [models[i].variables for i in order]
    if method == "greedy":
        soup, attempts = averaging.greedy_soup(candidates, score)
        kept = [attempt.kept for attempt in attempts]
    else:
        for count in range(1, len(order) + 1):
            score(averaging.mean(candidates[:count]))
        soup, kept = averaging.mean(candidates), [True] * len(order)
    soup = refresh(soup) if sum(kept) > 1 else soup
    names = dict(zip(order, letters(), strict=False))
    ingredients = [
        {
            "name": names[i],
            "run": str(paths[i]),
            "seed": models[i].seed,
            "params_digest": tree.digest(models[i].variables.params),
            **_figures(alone[i]),
            "kept": is_kept,
            "soup": _figures(metrics),
        }
        for i, is_kept, metrics in zip(order, kept, way, strict=True)
    ]
    best = max(order, key=lambda i: alone[i]["accuracy"])
    tested = {"soup": way[-1], "best": alone[best]}
    if common:
        tested = {"soup": evaluate(soup, "test"), "best": evaluate(models[best].variables, "test")}
    trained = _trained(first, soup, method, ingredients, agree=common is not None)
    result = {
        "method": method,
        "recipe": first.recipe.name,
        "dataset": dataset.name,
        "split": split,
        "n": alone[0]["n"],
        "ingredients": ingredients,
        "kept": sum(kept),
        "test_n": tested["soup"]["n"],
        "test": {
            "soup": _figures(tested["soup"]) | {"interval95": tested["soup"]["interval95"]},
            "best": _figures(tested["best"]) | {"name": names[best]},
        },
        "params_digest": tree.digest(soup.params),
    }
    return trained, io.finite(result)


def save(path: Path, soup: Trained) -> None:
    """Write a soup to a safetensors file that ``inference.load`` reads."""
    metadata = {
        "recipe": json.dumps(recipes.to_dict(soup.recipe)),
        "classes": json.dumps(soup.classes),
        "seed": str(soup.seed),
        "dataset": soup.dataset,
        "dataset_digest": soup.dataset_digest,
        "params_digest": tree.digest(soup.variables.params),
        "soup": soup.soup,
    }
    tensor_files.save(path, {**soup.variables.params, **soup.variables.buffers}, metadata)


def _trained(
    first: Trained,
    soup: Variables,
    method: str,
    ingredients: Sequence[dict[str, Any]],
    *,
    agree: bool,
) -> Trained:
    """Return the soup with its origin. Its recipe holds out what all ingredients have left out."""
    kept = ("run", "seed", "params_digest")
    parts = [{name: each[name] for name in kept} for each in ingredients if each["kept"]]
    recipe = first.recipe
    if not agree and recipe.holds_out:
        nothing = {"valid_fraction": 0.0, "stratify": False, "fold": "", "patience": 0}
        nothing["restore_best"] = False
        recipe = recipe.replace(**nothing)
    origin = json.dumps({"method": method, "ingredients": parts})
    return first._replace(recipe=recipe, variables=soup, soup=origin)


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in _FIGURES}
