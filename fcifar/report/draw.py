"""The figures of a run, an evaluation, per-example scores and a group, as PNG files."""

import functools
import gc
import importlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar import random, recipes
from fcifar.analysis import calibration, score_tables
from fcifar.analysis.score_tables import OF_ONE, OF_SEVERAL, Examined
from fcifar.augment import color
from fcifar.data import Dataset
from fcifar.report.figures import (
    adversarial as adversarial_figure,
)
from fcifar.report.figures import (
    bars,
    channels,
    confusion,
    curves,
    grids,
    landscape,
    reliability,
    sweep,
)
from fcifar.report.figures import (
    heat_maps as heat_map_figure,
)
from fcifar.report.figures import (
    rates as rate_figure,
)
from fcifar.report.figures import (
    robustness as robustness_figure,
)
from fcifar.report.figures.canvas import save
from fcifar.runs.adversarial import Attacked
from fcifar.runs.explain import Explanations
from fcifar.runs.proponents import Influences
from fcifar.runs.robustness import corrupted
from fcifar.step import Batch, EvalOutput
from fcifar.train import metrics_log, run_dir
from fcifar.train.config import read_config
from fcifar.train.evaluate import read_predictions

_IMAGES = 20  # of a grid of predictions, and of a training batch
_SCORED = 24  # of a grid of the hardest images: three rows of eight
_SUSPECTS = 40  # of a sheet of likely label errors: five rows of eight
_VOTED = 3  # classes named below a disputed image
_KEY = 7  # after those of a run, see train.setup, and of runs.proponents
_LABELS = {
    "loss": "loss, nats",
    "probability": "probability of the true class",
    "margin": "margin of the true class's logit",
    "gradient_norm": "norm of the gradient",
    "error_norm": "norm of the error of the probabilities",
    "error_rate": "share of models that are wrong",
    "disagreement": "share of pairs that disagree",
    "entropy": "entropy of the mean probabilities, nats",
    "mean_entropy": "mean of the models' entropies, nats",
    "mutual_information": "mutual information, nats",
    "mean_loss": "mean loss, nats",
}


@functools.cache
def prepare() -> None:
    """Begin to import matplotlib, while something else is computed."""
    modules = ("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.PngImagePlugin")
    threading.Thread(target=lambda: [*map(importlib.import_module, modules)], daemon=True).start()


def run(path: Path, dataset: Dataset) -> None:
    """Write the figures of a finished run to its ``plots/``.

    The learning curves, the accuracy by class, a batch of augmented training images before
    normalisation, and the figures of ``evaluation`` for the test images.

    Args:
        path: the run directory.
        dataset: what it was trained on.
    """
    gc.freeze()  # so that collecting what each figure leaves behind looks at nothing else
    try:
        _run(path, dataset)
    finally:
        gc.unfreeze()


def _run(path: Path, dataset: Dataset) -> None:
    folder, config = path / run_dir.PLOTS, read_config(path)
    report = run_dir.read_report(path)
    title = f"{report['recipe']} on {report['dataset']}, seed {report['seed']}"
    save(curves.of_run(metrics_log.read(path), title=title), folder / "learning_curve.png")
    save(bars.per_class(report["per_class"], title=title), folder / "per_class.png")

    key = random.fold_in(random.key(report["seed"]), _KEY)
    order_key, augment_key = random.split(key)
    rows = random.permutation(order_key, len(dataset.train_labels))[:_IMAGES]
    batch = recipes.make_augment(config.recipe)(augment_key, dataset.train_images[rows])
    labels = dataset.train_labels[rows]
    mix = recipes.make_mix(config.recipe, len(dataset.classes))
    if mix is not None:  # with the label of the larger part
        mixed, targets = mix(random.fold_in(augment_key, 1), batch, labels)
        batch, labels = color.to_levels(mixed), targets.argmax(-1)
    heading = f"{title}: training images as the model sees them"
    grid = grids.training_grid(batch, labels, dataset.classes, heading=heading)
    save(grid, folder / "training_batch.png")
    examples, labels = read_predictions(path / run_dir.PREDICTIONS)
    test = Batch(dataset.test_images, labels)
    evaluation(folder, test, examples, dataset.classes, title=f"{title}, test images")


def evaluation(
    folder: Path, data: Batch, examples: EvalOutput, classes: Sequence[str], *, title: str
) -> None:
    """Write confusion.png, reliability.png, predictions.png, mistakes.png and channels.png.

    Args:
        folder: created if it does not exist.
        data: what was evaluated, uint8 images.
        examples: the output for each image, in the same order.
        classes: C names.
        title: what was evaluated, in a few words.
    """
    labels = data.labels.cpu()
    confidence, predictions = calibration.softmax_confidence(examples.logits)
    matrix = calibration.confusion_matrix(labels, predictions, len(classes))
    save(confusion.draw(matrix, classes, title=title), folder / "confusion.png")
    bins = calibration.reliability(confidence, examples.correct)
    ece = calibration.expected_calibration_error(bins)
    save(reliability.draw(bins, ece, title=title), folder / "reliability.png")

    def grid(rows: Tensor, name: str, heading: str) -> None:
        parts = (data.images[rows].cpu(), labels[rows], predictions[rows], confidence[rows])
        save(grids.predictions_grid(*parts, classes, heading=f"{title}: {heading}"), folder / name)

    # At random, because a data set may be sorted by class; the same ones, to compare runs.
    sample = random.permutation(random.key(0), len(labels))[:_IMAGES]
    grid(sample, "predictions.png", "predicted (true)")
    mistakes = calibration.most_confident_mistakes(examples.logits, labels, _IMAGES)
    if len(mistakes):
        grid(mistakes, "mistakes.png", "the most confident mistakes")
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)
    first = int(sample[0])
    name = f"{classes[int(labels[first])]}, image {first:,}: pixels"
    save(channels.draw(data.images[first].cpu(), title=name), folder / "channels.png")


def temperature(
    folder: Path, before: EvalOutput, after: EvalOutput, value: float, *, title: str
) -> None:
    """Write calibration.png, the reliability without and with a temperature.

    Args:
        folder: created if it does not exist.
        before: the output for each example.
        after: the same with logits divided by the temperature.
        value: the temperature.
        title: what was evaluated, in a few words.
    """
    parts = []
    for examples in (before, after):
        confidence, _ = calibration.softmax_confidence(examples.logits)
        parts.append(calibration.reliability(confidence, examples.correct))
    errors = [calibration.expected_calibration_error(bins) for bins in parts]
    drawn = reliability.before_and_after(parts, errors, value, title=title)
    save(drawn, folder / "calibration.png")


def examples(
    folder: Path, images: Tensor, examined: Examined, classes: Sequence[str], *, title: str
) -> None:
    """Write hardest.png and scores.png; for several models, disputed.png and networks.png too.

    Args:
        folder: created if it does not exist.
        images: uint8 [N, 3, H, W], the examples.
        examined: their scores, in the same order.
        classes: C names.
        title: what was evaluated, in a few words.
    """
    together, labels = examined.together, examined.labels
    answers = examined.scores if together is None else together

    def grid(name: str, rows: Tensor, describe: Callable[[int], str], heading: str) -> None:
        rows = rows[:_SCORED]
        captions = []
        for row in rows.tolist():
            predicted, true = classes[int(answers.prediction[row])], classes[int(labels[row])]
            verdict = predicted if predicted == true else f"{predicted} ({true})"
            captions.append(f"{verdict}\n{describe(row)}\n{examined.names[row]}")
        colors = [grids.RIGHT if answers.correct[row] else grids.WRONG for row in rows.tolist()]
        heading = f"{title}: {heading}; predicted (true)"
        drawn = grids.image_grid(images[rows].cpu(), captions, colors=colors, heading=heading)
        save(drawn, folder / name)

    def histograms(name: str, of: tuple[str, ...], values: Any, title: str) -> None:
        scores = {_LABELS[score]: getattr(values, score) for score in of}
        save(bars.scores(scores, values.correct, title=title), folder / name)

    histograms("scores.png", OF_ONE, examined.scores, f"{title}: scores")
    hardest = score_tables.hardest(examined)
    if together is None:
        grid("hardest.png", hardest, lambda i: _loss(examined.scores.loss[i]), "highest loss")
        for name in ("disputed.png", "networks.png"):
            (folder / name).unlink(missing_ok=True)
        return
    votes, losses = together.votes, together.mean_loss
    models = int(votes[0].sum())

    def errors(row: int) -> str:
        wrong = models - int(votes[row, labels[row]])
        return f"{wrong} of {models} wrong\n{_loss(losses[row])}"

    def vote(row: int) -> str:
        return "\n".join(f"{name} {n}" for name, n in leading_votes(votes[row], classes))

    grid("hardest.png", hardest, errors, f"hardest for {models} models")
    disputed = score_tables.most_disputed(together)
    heading = f"most disputed among {models} models, with their votes"
    grid("disputed.png", disputed, vote, heading)
    histograms("networks.png", OF_SEVERAL, together, f"{title}: {models} models together")


def group(path: Path) -> None:
    """Write the figures of a finished group to its ``plots/``.

    ``curves.png`` always; ``spread.png`` if a point has at least two runs; ``sweep.png`` if one or
    two values are swept.
    """
    summary, folder = run_dir.read_report(path, run_dir.SUMMARY), path / run_dir.PLOTS
    title = f"{summary['recipe']} on {summary['dataset']}"
    save(curves.of_group(read_logs(path, summary), title=title), folder / "curves.png")
    if any(cell["together"] for cell in summary["cells"]):
        save(sweep.spread(summary, title=title), folder / "spread.png")
    if 1 <= len(summary["swept"]) <= 2:
        save(sweep.points(summary, title=title), folder / "sweep.png")


def soup(folder: Path, result: dict[str, Any]) -> None:
    """Write soup.png: what ``runs.soup.make`` returned."""
    title = f"{result['recipe']} on {result['dataset']}: a {result['method']} soup"
    save(sweep.soup(result, title=title), folder / "soup.png")


def rates(folder: Path, result: dict[str, Any]) -> None:
    """Write rates.png: what ``train.lr_find.find`` returned."""
    title = f"{result['recipe']} on {result['dataset']}: loss by learning rate"
    save(rate_figure.draw(result, title=title), folder / "rates.png")


def influence(
    folder: Path, found: Influences, train_images: Tensor, result: dict[str, Any]
) -> None:
    """Write influence.png: each image with its proponents, and its opponents below them.

    Args:
        folder: created if it does not exist.
        found: scores, see ``runs.proponents``.
        train_images: uint8 [N, 3, H, W], of the data set.
        result: what ``runs.proponents.make`` returned with them.
    """
    title = (
        f"{result['recipe']} on {result['dataset']}: proponents and opponents by {result['method']}"
    )
    save(grids.influence_grid(found, train_images, result, heading=title), folder / "influence.png")


def robustness(folder: Path, result: dict[str, Any], images: Tensor) -> None:
    """Write robustness.png, and corruptions.png if images were corrupted here.

    Args:
        folder: created if it does not exist.
        result: from ``runs.robustness``.
        images: uint8 [N, 3, H, W], as they were; the first one is the example.
    """
    recipes_ = " and ".join(dict.fromkeys(run["recipe"] for run in result["runs"]))
    title = f"{recipes_} on corrupted {result['split']} images of {result['dataset']}"
    save(robustness_figure.draw(result, title=title), folder / "robustness.png")
    if result["seed"] is None:
        (folder / "corruptions.png").unlink(missing_ok=True)
        return
    image, seed = images[:1].cpu(), result["seed"]
    shown = {name: severities[-1] for name, severities in result["severities"].items()}
    versions = [corrupted(image, name, severity, seed) for name, severity in shown.items()]
    captions = [f"{name.replace('_', ' ')} {severity}" for name, severity in shown.items()]
    heading = f"the first of the {result['split']} images, at the largest severity evaluated"
    grid = grids.image_grid(
        torch.cat([image, *versions]), ["clean", *captions], columns=8, heading=heading
    )
    save(grid, folder / "corruptions.png")


def attacks(
    folder: Path, result: dict[str, Any], attacked: Attacked, classes: Sequence[str], *, title: str
) -> None:
    """Write adversarial.png, and of several attacks attacks.png: see ``runs.adversarial.evaluate``.

    Args:
        folder: created if it does not exist.
        result, attacked: what was returned.
        classes: C names.
        title: what was attacked, in a few words.
    """
    heading = f"{title}: before and after attacks; predicted (true)"
    drawn = adversarial_figure.sheet(attacked, result, classes, heading=heading)
    save(drawn, folder / "adversarial.png")
    if len(result["found"]) > 1:
        figure = adversarial_figure.curve(result, title=f"{title}: accuracy under attack")
        save(figure, folder / "attacks.png")
    else:
        (folder / "attacks.png").unlink(missing_ok=True)


def explanations(
    folder: Path, explained: Explanations, classes: Sequence[str], *, title: str
) -> None:
    """Write explained.png: attributions of predicted classes, see ``runs.explain.explain``.

    Args:
        folder: created if it does not exist.
        explained: what was returned.
        classes: C names.
        title: what was explained, in a few words.
    """
    save(heat_map_figure.sheet(explained, classes, heading=title), folder / "explained.png")


def between_runs(folder: Path, result: dict[str, Any]) -> None:
    """Write path.png or plane.png: what ``runs.landscape`` returned."""
    title = f"{result['recipe']} on {result['dataset']}: "
    if result["kind"] == "path":
        figure = landscape.path(result, title=f"{title}the line between two runs")
    else:
        figure = landscape.plane(result, title=f"{title}the plane through three runs")
    save(figure, folder / f"{result['kind']}.png")


def label_errors(folder: Path, dataset: Dataset, result: dict[str, Any]) -> None:
    """Write sheet.png, the most suspicious images of what ``runs.folds.summarize`` returned.

    Below each image is the given class, the suggested one, and the probability of the given one.
    """
    images = result["images"][:_SUSPECTS]
    if not images:
        (folder / "sheet.png").unlink(missing_ok=True)
        return
    captions = [
        f"{each['given']} \N{RIGHTWARDS ARROW} {each['suggested']}\n"
        f"{100 * each['self_confidence']:.2g} %, {each['image']}"
        for each in images
    ]
    heading = f"{result['dataset']}: given \N{RIGHTWARDS ARROW} suggested, and the probability of "
    heading += f"the given class; the first {len(images)} of {result['found']:,}"
    rows = torch.tensor([each["row"] for each in images])
    grid = grids.image_grid(dataset.train_images[rows], captions, heading=heading)
    save(grid, folder / "sheet.png")


def read_logs(path: Path, summary: dict, count: int | None = None) -> list[list[dict]]:
    """Return the metrics logs of the members of a group that were begun, at most ``count``."""
    members = [path / member["name"] for member in summary["members"][:count]]
    return [metrics_log.read(run) for run in members if (run / run_dir.MANIFEST).exists()]


def leading_votes(votes: Tensor, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Return the classes with most votes and their numbers, at most three.

    Args:
        votes: int64 [C], of one example.
        classes: C names.
    """
    count, number = votes.sort(descending=True, stable=True)
    ranked = zip(number[:_VOTED].tolist(), count[:_VOTED].tolist(), strict=True)
    return [(classes[n], c) for n, c in ranked if c]


def _loss(loss: Tensor) -> str:
    return f"loss {loss.item():.2f}"
