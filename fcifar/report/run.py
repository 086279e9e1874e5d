"""The figures of a training run, from its directory."""

from pathlib import Path

from fcifar import random, recipes
from fcifar.data import Dataset
from fcifar.report import evaluation
from fcifar.report.plots import learning_curve, per_class_bars
from fcifar.report.predictions import training_grid
from fcifar.step import Batch
from fcifar.train import metrics_log, run_dir
from fcifar.train.config import read_config
from fcifar.train.evaluate import read_predictions


def draw(run: Path, dataset: Dataset) -> None:
    """Fill ``plots/`` of a finished run.

    The curves, the accuracy by class, a batch of training images as the network sees them
    (augmented, before normalisation), and the figures of ``evaluation.draw`` for the test images.

    Args:
        run: the run directory.
        dataset: what it was trained on.
    """
    folder, config = run / run_dir.PLOTS, read_config(run)
    report = run_dir.read_report(run)
    title = f"{report['recipe']} on {report['dataset']}, seed {report['seed']}"
    learning_curve(metrics_log.read(run), folder / "learning_curve.png", title=title)
    per_class_bars(report["per_class"], folder / "per_class.png", title=title)

    order_key, augment_key = random.split(random.key(report["seed"]))
    rows = random.permutation(order_key, len(dataset.train_labels))[: evaluation.PICTURES]
    augment = recipes.make_augment(config.recipe)
    training_grid(
        augment(augment_key, dataset.train_images[rows]),
        dataset.train_labels[rows],
        dataset.classes,
        folder / "training_batch.png",
        heading=f"{title}: training images as the model sees them",
    )
    examples, labels = read_predictions(run / run_dir.PREDICTIONS)
    test = Batch(dataset.test_images, labels)
    evaluation.draw(folder, test, examples, dataset.classes, title=f"{title}, test images")
