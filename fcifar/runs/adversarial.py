"""Accuracy of a trained model on adversarial images."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.linalg import vector_norm

from fcifar import random, recipes, tree
from fcifar.analysis import predictions
from fcifar.analysis.attacks import NORMS, Attack, fgsm, make_attack_step, pgd
from fcifar.data import Dataset
from fcifar.errors import UsageError, shown
from fcifar.recipes.checks import check_count
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch, EvalOutput
from fcifar.train.evaluate import padded_rows
from fcifar.train.runtime import Runtime, activate

IMAGES = 1000  # attacked by default
STEPS = 20  # of PGD by default
_SHOWN = 6  # images that are kept for a figure
_AT_A_TIME = 100  # images on a CPU; a GPU is faster with more
_METRICS = ("accuracy", "interval95", "per_class")


class Spec(NamedTuple):
    """An attack of the command line."""

    text: str
    name: str  # fgsm or pgd
    eps: float
    steps: int
    norm: str  # linf or l2


class Attacked(NamedTuple):
    """Some images before and after each attack, for a figure: the first that are right before."""

    batch: Batch  # uint8 images
    clean: EvalOutput
    images: list[Tensor]  # float32 [n, 3, H, W], of each attack
    outputs: list[EvalOutput]


def parse(text: str) -> Spec:
    """Parse ``fgsm:EPS``, ``pgd:EPS`` or ``pgd:EPS,STEPS``, each with ``,l2`` for that norm.

    EPS is a number such as 0.03, or a quotient such as 8/255.

    Raises:
        UsageError: the text is none of these, or a number is out of range.

    >>> from fcifar.runs.adversarial import parse
    >>> parse("pgd:0.5,10,l2")
    Spec(text='pgd:0.5,10,l2', name='pgd', eps=0.5, steps=10, norm='l2')
    """
    name, _, rest = text.partition(":")
    written, *more = rest.split(",")
    norms = [word for word in more if word in NORMS]
    numbers = [word for word in more if word not in NORMS]
    is_whole = all(word.isascii() and word.isdigit() for word in numbers)
    most = {"fgsm": 0, "pgd": 1}.get(name, -1)
    eps = _eps(written)
    if len(numbers) > most or len(norms) > 1 or not is_whole or math.isnan(eps):
        raise UsageError(
            f"--attack is {shown(text)}; it must be fgsm:EPS or pgd:EPS,STEPS, with ,l2 for that "
            f"norm, such as fgsm:8/255 or pgd:0.5,{STEPS},l2"
        )
    norm = norms[0] if norms else NORMS[0]
    if not 0 < eps <= (1 if norm == "linf" else math.inf) or math.isinf(eps):
        hint = f", such as {written}/255" if norm == "linf" and 1 < eps <= 255 else ""
        most_eps = " and at most 1" if norm == "linf" else ""
        raise UsageError(
            f"--attack {shown(text)} has eps {written}; images are in [0, 1], and eps must be "
            f"above 0{most_eps}{hint}"
        )
    steps = int(numbers[0]) if numbers else {"fgsm": 1, "pgd": STEPS}[name]
    check_count(f"the number of steps of --attack {shown(text)}", steps, 1, 10_000)
    return Spec(text, name, eps, steps, norm)


def _eps(text: str) -> float:
    """A number or a quotient; NaN for another text."""
    over, slash, under = text.partition("/")
    try:
        return float(over) / (float(under) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return math.nan


class Plan(NamedTuple):
    """Attacks of an evaluation."""

    specs: list[Spec]
    restarts: int  # of those with a random start
    images: int  # how many are attacked, drawn at random; those of a smaller split are all attacked
    seed: int  # of the choice of images and of all starts, so that runs and attacks are comparable


def make_plan(
    texts: Sequence[str],
    restarts: int | None = None,
    images: int | None = None,
    seed: int = 0,
) -> Plan:
    """Parse attacks and their options; without any, the plan has no specs.

    Raises:
        UsageError: as ``parse``, a number is out of range, or an option has no attack to apply to.
    """
    specs = [parse(text) for text in texts]
    for name, value in (("--restarts", restarts), ("--attack-images", images)):
        if value is not None:
            check_count(name, value, 1, 10**9)
            if not specs:
                raise UsageError(f"{name} is of --attack, which is not given; leave it out")
    if restarts is not None and all(spec.name == "fgsm" for spec in specs):
        raise UsageError(
            f"--restarts is {restarts}, and fgsm has no random start; leave it out, or use pgd"
        )
    return Plan(specs, restarts or 1, images or IMAGES, seed)


def evaluate(
    trained: Trained,
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    clean: EvalOutput,
    plan: Plan,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[dict[str, Any], Attacked]:
    """Attack a model on some images of a split; return JSON-serializable metrics, and examples.

    An image counts as right under an attack if the model is right on the image itself, which is in
    the ball too, and on the adversarial image. So a model is never more accurate under an attack
    than without.

    Args:
        clean: the output for each image of the split, from ``inference.evaluate``.
        plan: of at least one attack.
    """
    everything = inference.images_of(trained, dataset, split)
    total = len(everything.labels)
    order_key, start_key = random.split(random.key(plan.seed))
    rows = random.permutation(order_key, total)[: plan.images]
    batch, clean = (tree.map(lambda x: x.cpu()[rows], each) for each in (everything, clean))
    shown = clean.correct.logical_not().sort(stable=True).indices[:_SHOWN]
    before, output_before = (tree.map(lambda x: x[shown], each) for each in (batch, clean))
    attacked = Attacked(before, output_before, [], [])
    found = []
    for spec in plan.specs:
        tries = plan.restarts if spec.name == "pgd" else 1
        keys = vmap(random.fold_in, (None, 0))(start_key, rows)
        changed = _attack(trained, runtime, batch, keys, spec, tries, progress)
        output = inference.examine(trained, runtime, Batch(changed, batch.labels))
        output = output._replace(correct=output.correct & clean.correct)
        attacked.images.append(changed[shown])
        attacked.outputs.append(tree.map(lambda x: x[shown], output))
        difference = changed - batch.images.to(changed.dtype) / 255
        order = math.inf if spec.norm == "linf" else 2
        distances = vector_norm(difference.flatten(1).double(), order, dim=1)
        found.append(
            {
                "attack": spec.text,
                **{name: getattr(spec, name) for name in ("name", "norm", "eps", "steps")},
                "restarts": tries,
                **_metrics(output, batch.labels, dataset.classes),
                "fooled": int((clean.correct & ~output.correct).sum()),
                "mean_distance": distances.mean().item(),
                "largest_distance": distances.max().item(),
            }
        )
    result = {
        "n": len(rows),
        "of": total,
        "chosen": "all" if len(rows) == total else f"at random, by seed {plan.seed}",
        "clean": _metrics(clean, batch.labels, dataset.classes),
        "found": found,
    }
    return result, attacked


def make_attack(spec: Spec) -> Attack:
    """Return the attack of a spec."""
    if spec.name == "fgsm":
        return fgsm(spec.eps, norm=spec.norm)
    return pgd(spec.eps, spec.steps, norm=spec.norm)


def _attack(
    trained: Trained,
    runtime: Runtime,
    batch: Batch,
    keys: Tensor,
    spec: Spec,
    restarts: int,
    progress: Callable[[str, int, int], None],
) -> Tensor:
    """Return adversarial images, float32 [n, 3, H, W] on the CPU.

    The start of image i is drawn from ``keys[i]``, int64 [n, 2].
    """
    step = make_attack_step(
        trained.model,
        make_attack(spec),
        restarts=restarts,
        preprocess=recipes.make_preprocess(trained.recipe),
        policy=runtime.policy,
    )
    at_a_time = _AT_A_TIME if runtime.device == "cpu" else 5 * _AT_A_TIME
    parts, done = [], 0
    with activate(runtime):
        variables, batch, keys = tree.on_device((trained.variables, batch, keys), runtime.device)
        for chosen, kept in padded_rows(len(keys), max(1, at_a_time // restarts), keys.device):
            progress(f"attacking by {spec.text}", done, len(keys))
            images = step(keys[chosen], variables, tree.map(lambda x, i=chosen: x[i], batch))
            parts.append(images[:kept].cpu())
            done += kept
        progress(f"attacking by {spec.text}", done, done)
    return torch.cat(parts)


def _metrics(output: EvalOutput, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    summary = predictions.summarize(output, labels, classes)
    return {name: summary[name] for name in _METRICS}
