"""What scores of influence are worth: training again without the images that they name.

    python -m benchmarks.bench_influence [--dataset cifar10] [--classes automobile,cat,dog]
        [--images 1000] [--tests 8] [--removed 5] [--subsets 24] [--seeds 4] [--steps 200]
        [--damping 0.1] [--iterations 20] [--threads 1] [--name influence]

Trains the tutorial's model on images of a few classes, with each of the seeds, and scores all
training images for --tests test images: TracIn over 5 checkpoints, and influence functions with
the Gauss-Newton matrix of all training images. Scores are of seed 0 alone, or the mean of all
seeds.

Removal: for --removed test images, 1 % and 5 % of the training images are left out, and all seeds
trained again for as many steps: the highest scores, the lowest ones, and images of the test image's
class at random. The rise of the test image's loss is relative to training on all images.

Random halves: the model is trained on --subsets random halves of the training images, with all
seeds. The rank correlation over the halves between minus the sum of the scores of a half and the
mean loss of a test image there is the linear datamodeling score of Park et al.,
https://arxiv.org/abs/2303.14186, with the loss as output. `same class` has the score 1 for images
of the test image's class. `other half of the seeds` predicts the losses of some seeds by those of
the others: what a perfect score could reach is higher, by the noise of half the seeds.

Intervals are those of a mean over test images (t, 95 %). Writes bench_results/NAME.json.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import records, script
from fcifar import data, models, optim, random, tree
from fcifar.analysis import influence
from fcifar.analysis.influence import Checkpoint
from fcifar.models import Variables
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step
from fcifar.step_transforms import compile_step, on_indices
from fcifar.train.runtime import activate, make_runtime

RATE, MOMENTUM, BATCH_SIZE = 0.01, 0.9, 50
CHECKPOINTS, CHUNK = 5, 250
SHARES = {"1 %": 0.01, "5 %": 0.05}
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}

Train = Callable[[int, Tensor], list[Variables]]  # seed, rows -> variables at the checkpoints


def choose(images: Tensor, labels: Tensor, classes: Sequence[int], size: int, key: Any) -> Batch:
    """Draw images of some classes, which are numbered anew."""
    of_classes = torch.nonzero(torch.isin(labels, torch.tensor(classes))).flatten()
    rows = random.permutation(key, of_classes)[:size]
    numbers = torch.full((max(classes) + 1,), -1)
    numbers[list(classes)] = torch.arange(len(classes))
    return Batch(images[rows], numbers[labels[rows]])


def make_train(train: Batch, model: models.Model, steps: int) -> Train:
    """Return a function that trains on some rows, always for as many steps."""
    optimizer = optim.sgd(RATE, momentum=MOMENTUM)
    step = compile_step(on_indices(make_train_step(model, optimizer), train))

    def run(seed: int, rows: Tensor) -> list[Variables]:
        init_key, order_key = random.split(random.key(seed))
        state = init_train_state(model, optimizer, key=init_key)
        per_epoch, saved = len(rows) // BATCH_SIZE, []
        for i in range(steps):
            epoch, batch = divmod(i, per_epoch)
            if not batch:
                order = random.permutation(random.fold_in(order_key, epoch), rows)
            state, _ = step(state, order[batch * BATCH_SIZE :][:BATCH_SIZE])
            if (i + 1) % (steps // CHECKPOINTS) == 0:
                saved.append(tree.map(torch.clone, state.variables))
        return saved

    return run


def score(
    model: models.Model,
    moments: Sequence[Variables],
    test: Batch,
    train: Batch,
    damping: float,
    iterations: int,
) -> dict[str, Tensor]:
    """Return the scores [T, N] of each method."""
    logits = influence.example_logits(model)
    checkpoints = [Checkpoint(RATE, v.params, (v.buffers,)) for v in moments]
    found = {
        "tracin": influence.tracin(logits, chunk_size=CHUNK)(checkpoints, test, train),
        "tracin, last": influence.tracin(logits, chunk_size=CHUNK)(checkpoints[-1:], test, train),
    }
    final = moments[-1]
    method = influence.gauss_newton(
        logits, damping=damping, iterations=iterations, chunk_size=CHUNK
    )
    found["gauss_newton"] = method(final.params, test, train, final.buffers)
    return found


def ranks(values: Tensor) -> Tensor:
    """Return the ranks along the last axis, from 0; equal values have the mean of theirs."""
    one, other = values.unsqueeze(-1), values.unsqueeze(-2)
    return (one > other).sum(-1) + ((one == other).sum(-1) - 1) / 2.0


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation along the last axis."""
    x, y = (ranks(v).double() - (v.shape[-1] - 1) / 2 for v in (a, b))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, the ends of its interval, and the values."""
    mean, count = statistics.fmean(values), len(values)
    half = math.inf
    if count > 1:
        half = T95.get(count - 1, 2.2) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": mean, "interval95": [mean - half, mean + half], "each": list(values)}


def main() -> None:
    what = {"dataset": "cifar10", "classes": "automobile,cat,dog", "images": 1000, "tests": 8}
    how = {"removed": 5, "subsets": 24, "seeds": 4, "steps": 200, "damping": 0.1}
    more = {"iterations": 20, "threads": 1, "name": "influence"}
    options = script.parser(__doc__, **what, **how, **more).parse_args()
    dataset = data.load(options.dataset, data.data_root())
    config = {**vars(options), "data_source": dataset.source}
    with activate(make_runtime(device="cpu", threads=options.threads)):
        for results in measure(dataset, options):  # written as they come
            print(records.write(options.name, config, results), flush=True)


def measure(dataset: data.Dataset, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train and compare; yield the results so far."""
    classes = [dataset.classes.index(name) for name in options.classes.split(",")]
    train_key, test_key, half_key, random_key = random.split(random.key(0), 4)
    train = choose(dataset.train_images, dataset.train_labels, classes, options.images, train_key)
    test = choose(dataset.test_images, dataset.test_labels, classes, options.tests, test_key)
    others = choose(dataset.test_images, dataset.test_labels, classes, 10_000, test_key)
    model = models.lenet(num_classes=len(classes))
    run, evaluate = make_train(train, model, options.steps), make_eval_step(model)
    everything, seeds = torch.arange(options.images), range(options.seeds)

    def losses(rows: Tensor) -> Tensor:
        """Losses [seeds, tests] after training on some rows."""
        return torch.stack([evaluate(run(seed, rows)[-1], test).loss for seed in seeds])

    started = time.perf_counter()
    moments = [run(seed, everything) for seed in seeds]
    base = torch.stack([evaluate(m[-1], test).loss for m in moments])
    accuracy = [evaluate(m[-1], others).correct.double().mean().item() for m in moments]
    seconds = (time.perf_counter() - started) / options.seeds
    print(f"trained in {seconds:.1f} s, accuracy {statistics.fmean(accuracy):.3f}", flush=True)

    started = time.perf_counter()
    each = [score(model, m, test, train, options.damping, options.iterations) for m in moments]
    scores = {f"{name}, one seed": values for name, values in each[0].items()}
    for name in each[0]:
        scores[f"{name}, all seeds"] = torch.stack([found[name] for found in each]).mean(0)
    scores["same class"] = (test.labels[:, None] == train.labels).float()
    print(f"scored in {time.perf_counter() - started:.0f} s", flush=True)

    results: dict[str, Any] = {
        "accuracy": accuracy,
        "loss_of_each_test": base.mean(0).tolist(),
        "training_seconds": seconds,
    }
    results["rank_correlation"] = halves(losses, scores, options, half_key)
    yield results
    results["rise"] = removal(losses, base, scores, train, test, options, random_key)
    yield results


def halves(
    losses: Callable[[Tensor], Tensor], scores: dict[str, Tensor], options: Any, key: Any
) -> dict[str, Any]:
    """Return the rank correlations of predicted and actual losses over random halves."""
    kept, found = [], []
    for subset in random.split(key, options.subsets):
        rows = random.permutation(subset, options.images)[: options.images // 2].sort().values
        kept.append(torch.zeros(options.images).index_fill(0, rows, 1.0))
        found.append(losses(rows))
    masks, actual = torch.stack(kept), torch.stack(found)  # [subsets, N], [subsets, seeds, tests]
    mean = actual.mean(1).T
    result = {}
    for name, values in scores.items():
        result[name] = interval(rank_correlation(-(values @ masks.T), mean).tolist())
    first, second = (actual[:, i::2].mean(1).T for i in (0, 1))
    result["other half of the seeds"] = interval(rank_correlation(first, second).tolist())
    for name, values in result.items():
        low, high = values["interval95"]
        print(f"{name:32} {values['mean']:6.3f} ({low:.3f} to {high:.3f})", flush=True)
    return result


def removal(
    losses: Callable[[Tensor], Tensor],
    base: Tensor,
    scores: dict[str, Tensor],
    train: Batch,
    test: Batch,
    options: Any,
    key: Any,
) -> dict[str, Any]:
    """Return the rise of the loss of each test image after images are left out."""
    rises: dict[str, list[float]] = {}
    for i in range(min(options.removed, options.tests)):
        same = torch.nonzero(train.labels == test.labels[i]).flatten()
        shuffled = random.permutation(random.fold_in(key, i), same)
        orders = {"same class at random": shuffled}
        for name in ("tracin", "gauss_newton"):
            order = scores[f"{name}, all seeds"][i].argsort(descending=True)
            orders |= {f"proponents, {name}": order, f"opponents, {name}": order.flip(0)}
        for name, order in orders.items():
            for share, part in SHARES.items():
                rows = torch.ones(options.images, dtype=torch.bool)
                rows[order[: round(part * options.images)]] = False
                after = losses(torch.nonzero(rows).flatten())
                rise = (after - base)[:, i].mean().item()
                rises.setdefault(f"{name}, {share}", []).append(rise)
    result = {name: interval(values) for name, values in rises.items()}
    for name, values in result.items():
        low, high = values["interval95"]
        print(f"{name:50} {values['mean']:+.3f} ({low:+.3f} to {high:+.3f})", flush=True)
    return result


if __name__ == "__main__":
    main()
