"""FGSM and PGD: against torchattacks, in closed form for linear models, and their contracts."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from fcifar import random, tree
from fcifar.analysis.attacks import best_of, fgsm, make_attack_step, pgd, project
from fcifar.losses import cross_entropy
from fcifar.models import Model, Variables
from fcifar.precision import BF16, FP64
from fcifar.step import Batch
from tests.golden import make_attacks as golden
from tests.helpers import tiny_conv
from tests.helpers.small import make_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/attacks.json").read_text())["changes"]
KEY = random.key(5)


def distances(x: Tensor, images: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm((x - images).flatten(1), math.inf if norm == "linf" else 2, 1)


# Against torchattacks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_images_are_those_of_torchattacks(name: str) -> None:
    model, variables = tiny_conv.pure()
    steps, no_start = golden.STEPS, {"random_start": False}
    linf = {"step_size": golden.STEP, **no_start}
    attack = {
        "fgsm": fgsm(golden.EPS),
        "pgd": pgd(golden.EPS, steps, **linf),
        "pgd, start": pgd(golden.EPS, steps, **linf),
        "pgd, l2": pgd(golden.L2_EPS, steps, step_size=golden.L2_STEP, norm="l2", **no_start),
    }[name]
    images, labels = tiny_conv.images(), tiny_conv.LABELS
    if name != "pgd, start":
        options = {"preprocess": tiny_conv.IDENTITY, "policy": FP64}
        step = make_attack_step(model, attack, **options)
        found = step(KEY, variables, Batch(images, labels))
    else:

        def loss(x: Tensor, label: Tensor) -> Tensor:
            return cross_entropy(model.apply(variables, x[None])[0][0], label)

        def from_start(image: Tensor, start: Tensor, label: Tensor) -> Tensor:
            x = (image + golden.EPS * start).clamp(0, 1)
            for _ in range(steps):
                one = pgd(math.inf, 1, step_size=golden.STEP, random_start=False)(loss)
                x = project(one(KEY, x, label), image, golden.EPS)
            return x

        found = vmap(from_start)(images, tiny_conv.start(), labels)
    expected = torch.tensor(GOLDEN[name], dtype=torch.float64).reshape(images.shape)
    # torchattacks adds 1e-10 to the norm of a gradient that it divides by.
    torch.testing.assert_close(
        found - images, expected, rtol=0, atol=1e-8 if "l2" in name else 2e-12
    )


# In closed form -----------------------------------------------------------------------------------


def linear(weight: Tensor) -> tuple[Model, Variables]:
    """Logits are 0 and the sum of weight * image."""

    def apply(variables: Variables, images: Tensor, *, key=None, train=False):
        logit = (images * variables.params["weight"]).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], 1), {}

    variables = Variables({"weight": weight}, {})
    return Model(lambda key: variables, apply), variables


def margins(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return (x * weight).sum((1, 2, 3)) * torch.where(labels == 1, 1, -1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_a_linear_model_loses_eps_times_the_dual_norm(name: str, norm: str) -> None:
    """Where nothing is clipped; the dual norm of linf is l1, that of l2 is l2."""
    weight = random.normal(random.key(1), (3, 4, 4)).double()
    images = 0.5 + 0.1 * (random.uniform(random.key(2), (6, 3, 4, 4)).double() - 0.5)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    eps = {"linf": 0.1, "l2": 0.4}[norm]
    attack = fgsm(eps, norm=norm) if name == "fgsm" else pgd(eps, 40, step_size=eps, norm=norm)
    model, variables = linear(weight)
    options = {"preprocess": tiny_conv.IDENTITY, "policy": FP64}
    found = make_attack_step(model, attack, **options)(KEY, variables, Batch(images, labels))
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    lost = margins(images, weight, labels) - margins(found, weight, labels)
    # In l2, projected steps approach the farthest point, and linf steps reach it.
    torch.testing.assert_close(
        lost, (eps * dual).expand(6), rtol=1e-9 if norm == "linf" else 1e-6, atol=0
    )
    torch.testing.assert_close(distances(found, images, norm), torch.full((6,), eps).double())


def test_what_is_clipped_stays_in_the_range_of_images() -> None:
    model, variables = linear(torch.ones(3, 2, 2))
    images = torch.tensor([0.02, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    batch = Batch(images, torch.tensor([1, 1, 0]))
    step = make_attack_step(model, fgsm(0.1), preprocess=tiny_conv.IDENTITY)
    expected = torch.tensor([0.0, 0.4, 1.0])
    torch.testing.assert_close(step(KEY, variables, batch)[:, 0, 0, 0], expected)


def test_a_gradient_of_zero_or_nearly_zero() -> None:
    """0 changes nothing; squares below the smallest float32 still have a direction."""
    image = torch.full((3, 2, 2), 0.5)
    for scale, moved in ((0.0, 0.0), (1e-30, 0.25)):
        attack = fgsm(0.25, norm="l2")(lambda x, s=scale: (s * x).sum())
        assert (attack(KEY, image) - image).norm().item() == pytest.approx(moved, rel=1e-6)


# The ball -----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.floats(0, 4), st.floats(0, 5))
def test_projections(seed: int, norm: str, eps: float, spread: float) -> None:
    image_key, x_key = random.split(random.key(seed))
    image = random.uniform(image_key, (1, 3, 4, 4)).double()
    x = image + spread * (random.uniform(x_key, image.shape).double() - 0.5)
    found = project(x, image, eps, norm=norm)
    assert found.min() >= 0
    assert found.max() <= 1
    assert distances(found, image, norm).item() <= eps * (1 + 1e-12) + 1e-15
    assert ((found - image).abs() <= (x - image).abs() + 1e-15).all(), "never further away"
    torch.testing.assert_close(project(found, image, eps, norm=norm), found)
    inside = x.clamp(0, 1)
    if distances(inside, image, norm).item() <= eps:
        torch.testing.assert_close(project(inside, image, eps, norm=norm), inside)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_uniform_in_the_ball(norm: str) -> None:
    """Of 4 dimensions: |x| ** 4 is uniform in l2, and each value in linf."""
    image = torch.full((4, 1, 1), 0.5)
    start = pgd(0.5, 0, norm=norm)(lambda x: x.sum())
    drawn = vmap(start, (0, None))(random.split(KEY, 4000), image) - 0.5
    length = distances(drawn, torch.zeros_like(drawn), norm)
    assert length.max() <= 0.5 + 1e-6
    uniform = ((2 * length) ** 4).sort().values
    expected = (torch.arange(4000) + 0.5) / 4000
    assert (uniform - expected).abs().max() < 1.63 / math.sqrt(4000), "Kolmogorov and Smirnov, 1 %"
    assert drawn.mean((0, 2, 3)).abs().max() < 5 * 0.5 / math.sqrt(3 * 4000)


# Contracts ----------------------------------------------------------------------------------------


def lenet(make_batch, count: int = 4) -> tuple[Model, Variables, Batch]:
    model = make_model("lenet")
    variables = tree.map(lambda v: v.double(), model.init(random.key(3)))
    return model, variables, make_batch(count)


@pytest.mark.parametrize("attack", [fgsm(8 / 255), pgd(8 / 255, 3), pgd(0.5, 3, norm="l2")])
def test_a_step_is_pure_and_stays_in_the_ball(attack, make_batch) -> None:
    model, variables, batch = lenet(make_batch)
    before = tree.map(torch.clone, (KEY, variables, batch))
    step = make_attack_step(model, attack, policy=FP64)
    found = step(KEY, variables, batch)
    assert torch.equal(found, step(KEY, variables, batch))
    assert all(map(torch.equal, tree.leaves(before), tree.leaves((KEY, variables, batch))))
    assert (found.dtype, found.shape) == (torch.float32, batch.images.shape)
    assert found.min() >= 0
    assert found.max() <= 1


def test_an_image_is_attacked_alike_in_any_batch(make_batch) -> None:
    model, variables, batch = lenet(make_batch)
    keys = random.split(KEY, 4)
    for steps in (0, 4):
        step = make_attack_step(model, pgd(0.05, steps, norm="l2"), restarts=2, policy=FP64)
        together = step(KEY, variables, batch)
        for i in range(4):
            alone = step(keys[i : i + 1], variables, tree.map(lambda x, i=i: x[i : i + 1], batch))
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6 if steps else 0)


def test_the_best_of_several_restarts_is_kept(make_batch) -> None:
    model, variables, batch = lenet(make_batch)

    def margin_of(images: Tensor) -> Tensor:
        logits = model.apply(variables, (images.double() - 0.5) / 0.5)[0]
        true = torch.nn.functional.one_hot(batch.labels, 10).bool()
        return logits[true] - logits.masked_fill(true, -math.inf).amax(1)

    found = {}
    for restarts in (1, 2, 4):
        step = make_attack_step(model, pgd(0.1, 1), restarts=restarts, policy=FP64)
        found[restarts] = margin_of(step(KEY, variables, batch))
    assert (found[1] >= found[2]).all()
    assert (found[2] >= found[4]).all()
    assert (found[1] > found[4]).any()


def test_best_of_returns_the_image_with_the_highest_score() -> None:
    image, weight = torch.full((3, 2, 2), 0.5), torch.arange(12.0).view(3, 2, 2)

    def loss(x: Tensor) -> Tensor:
        return (weight * x).sum()

    start = pgd(0.3, 0)
    tried = torch.stack([start(loss)(key, image) for key in random.split(KEY, 7)])
    for score in (None, lambda x: -x[0, 0, 0]):
        best = best_of(start, 7, score)(loss)(KEY, image)
        scores = torch.stack([(score or loss)(x) for x in tried])
        assert torch.equal(best, tried[scores.argmax()])


def test_a_misclassified_image_is_kept_before_one_of_higher_loss() -> None:
    """The loss of three classes is higher at [1, 1, 1.1] for class 2, which is right there."""
    table = torch.tensor([[1.0, 1.0, 1.1], [3.0, -9.0, 2.9]])  # right, wrong with a lower loss
    model = Model(
        lambda key: Variables({}, {}), lambda v, x, **_: (table[x[:, 0, 0, 0].long()], {})
    )

    def attack(loss):
        return lambda key, image, label: (key[1] % 2).to(image.dtype).expand(image.shape)

    batch = Batch(torch.zeros(1, 3, 1, 1), torch.tensor([2]))
    losses = cross_entropy(table, torch.tensor([2, 2]))
    assert losses[0] > losses[1]
    step = make_attack_step(model, attack, restarts=20, preprocess=tiny_conv.IDENTITY)
    assert step(KEY, Variables({}, {}), batch).unique().tolist() == [1.0]


def test_images_of_either_kind_and_bfloat16(make_batch) -> None:
    model, _, batch = lenet(make_batch)
    variables = model.init(random.key(3))
    step = make_attack_step(model, pgd(0.03, 2))
    as_floats = batch._replace(images=batch.images / 255)
    assert torch.equal(step(KEY, variables, batch), step(KEY, variables, as_floats))
    low = make_attack_step(model, pgd(0.03, 2), policy=BF16)(KEY, variables, batch)
    assert low.dtype == torch.float32
    assert (low - as_floats.images).abs().max() <= 0.03 + 1e-6


def test_an_attack_on_several_models_is_one_on_their_mean_loss() -> None:
    """The loss is any function, such as a mean over models that ``vmap`` maps over."""
    model = make_model("lenet")
    several = vmap(model.init)(random.split(random.key(1), 3))
    image, label = random.uniform(random.key(2), (3, 32, 32)), torch.tensor(4)

    def loss(image: Tensor, label: Tensor) -> Tensor:
        logits = vmap(lambda v: model.apply(v, image[None])[0][0])(several)
        return vmap(cross_entropy, (0, None))(logits, label).mean()

    def by_a_loop(image: Tensor, label: Tensor) -> Tensor:
        each = [tree.map(lambda x, i=i: x[i], several) for i in range(3)]
        return sum(cross_entropy(model.apply(v, image[None])[0][0], label) for v in each) / 3

    found = pgd(0.1, 5)(loss)(KEY, image, label)
    assert loss(found, label) > loss(image, label)
    expected = pgd(0.1, 5, norm="l2")(by_a_loop)(KEY, image, label)
    torch.testing.assert_close(pgd(0.1, 5, norm="l2")(loss)(KEY, image, label), expected)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="norm is 'l3'"):
        pgd(0.1, norm="l3")
    with pytest.raises(ValueError, match="0 steps or more"):
        pgd(0.1, -1)
    with pytest.raises(ValueError, match="1 restart or more"):
        best_of(pgd(0.1), 0)
