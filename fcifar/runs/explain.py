"""Attributions of a trained model's predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import random, recipes, tensor_files, tree
from fcifar.analysis import calibration
from fcifar.analysis.attributions import METHODS, make_attribution_step
from fcifar.data import Dataset
from fcifar.errors import UsageError, did_you_mean, shown
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch, EvalOutput
from fcifar.train.runtime import Runtime, activate

IMAGES = 8  # that an evaluation explains
MOST_IMAGES = 40  # of a figure
FILE = "attributions.safetensors"
_AT_A_TIME = 4  # images on a CPU, each of them with 50 gradients


class Explanations(NamedTuple):
    """Attributions of the predicted classes of N images, by one model."""

    images: Tensor  # uint8 [N, 3, H, W]
    labels: Tensor  # int64 [N], the true classes; [0] if they are not known
    predicted: Tensor  # int64 [N]
    probability: Tensor  # float64 [N] in [0, 1], of the predicted class
    logit: Tensor  # [N], of the predicted class
    black: Tensor  # [N], the same logit for a black image, the baseline of integrated gradients
    maps: dict[str, Tensor]  # float32 [N, 3, H, W] by method, of grad_cam [N, H, W]


def parse(text: str | None, out: Path | None) -> list[str]:
    """Return the methods of ``NAME,NAME`` or ``all``; none without a text.

    Raises a UsageError for another name, or without a folder for the figure.
    """
    if text is None:
        return []
    if out is None:
        raise UsageError("--explain draws a figure and needs a folder for it; give --out DIR, too")
    names = list(METHODS) if text == "all" else list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise UsageError(
                f"--explain is {shown(text)}; it must be all or some of {known}, separated by "
                f"commas{did_you_mean(name, METHODS)}"
            )
    return names


def check_count(count: int) -> None:
    """Raise a UsageError for more than ``MOST_IMAGES`` images."""
    if count > MOST_IMAGES:
        raise UsageError(
            f"--explain is of up to {MOST_IMAGES} images, not {count:,}; give fewer, or leave it "
            "out"
        )


def explain(
    trained: Trained,
    runtime: Runtime,
    images: Tensor,
    methods: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Explanations:
    """Attribute the predicted class of each image, uint8 [N, 3, 32, 32], to its pixels.

    Raises:
        UsageError: there are more than ``MOST_IMAGES``, or the model has no convolution for
            ``grad_cam``.
    """
    check_count(len(images))
    images = images.cpu()
    logits = inference.predict(trained, runtime, images)
    predicted = logits.argmax(-1)
    black = inference.predict(trained, runtime, torch.zeros_like(images[:1]))[0]
    maps = {
        name: _attribute(trained, runtime, Batch(images, predicted), name, progress)
        for name in methods
    }
    own = predicted[:, None]
    probability = logits.double().softmax(-1).gather(1, own)[:, 0]
    unknown = predicted[:0]
    logit = logits.gather(1, own)[:, 0]
    return Explanations(images, unknown, predicted, probability, logit, black[predicted], maps)


def explain_mistakes(
    trained: Trained,
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    examples: EvalOutput,
    methods: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[list[dict[str, Any]], Explanations | None]:
    """Explain the most confident mistakes of an evaluation, at most ``IMAGES``.

    Args:
        examples: the output for each image of the split, from ``inference.evaluate``.

    Returns:
        JSON-serializable values of each image, and the explanations; None without a mistake.
    """
    data = inference.images_of(trained, dataset, split)
    labels = data.labels.cpu()
    rows = calibration.most_confident_mistakes(examples.logits, labels, IMAGES)
    if not len(rows):
        return [], None
    images = data.images.cpu()[rows]
    explained = explain(trained, runtime, images, methods, progress)._replace(labels=labels[rows])
    names = inference.image_names(trained, dataset, split)
    found = summarize(explained, dataset.classes)
    ids = [{"id": names[row], "label": dataset.classes[int(labels[row])]} for row in rows.tolist()]
    return [{**name, **each} for name, each in zip(ids, found, strict=True)], explained


def _attribute(
    trained: Trained,
    runtime: Runtime,
    batch: Batch,
    name: str,
    progress: Callable[[str, int, int], None],
) -> Tensor:
    step = make_attribution_step(
        trained.model,
        METHODS[name](),
        preprocess=recipes.make_preprocess(trained.recipe),
        policy=runtime.policy,
    )
    count, parts = len(batch.labels), []
    with activate(runtime):
        variables, batch = tree.on_device((trained.variables, batch), runtime.device)
        for start in range(0, count, _AT_A_TIME):
            progress(f"explaining by {name}", start, count)
            key = random.from_row(random.key(0, device=runtime.device), start)
            part = tree.map(lambda x, i=start: x[i : i + _AT_A_TIME], batch)
            try:
                parts.append(step(key, variables, part).float().cpu())
            except ValueError as error:
                raise UsageError(f"--explain {name}: {error}") from error
        progress(f"explaining by {name}", count, count)
    return torch.cat(parts)


def summarize(explanations: Explanations, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return JSON-serializable values for each image.

    The class, its logit, that of a black image, and with integrated gradients the sum of the
    attributions, which is the difference of the two logits up to the error of the quadrature.
    """
    found = [
        {"class": classes[predicted], "logit": logit, "black_logit": black}
        for predicted, logit, black in zip(
            *(getattr(explanations, name).tolist() for name in ("predicted", "logit", "black")),
            strict=True,
        )
    ]
    integrated = explanations.maps.get("integrated_gradients")
    if integrated is not None:
        for each, total in zip(found, integrated.flatten(1).double().sum(1).tolist(), strict=True):
            each["integrated_gradients_sum"] = total
    return found


def save(folder: Path, explanations: Explanations) -> None:
    """Write attributions, images and predicted classes to ``FILE`` in a folder."""
    tensors = {"images": explanations.images, "predicted": explanations.predicted}
    tensor_files.save(folder / FILE, {**tensors, **explanations.maps}, {})
