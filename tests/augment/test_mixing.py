"""mixup and CutMix: their draws, and steps whose labels are probabilities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import losses, models, optim, random, recipes
from fcifar.augment import Mix, base, cutmix, mixing, mixup
from fcifar.errors import UsageError
from fcifar.precision import FP64
from fcifar.step import Batch, Shard, init_train_state, make_train_step, normalize
from tests.helpers.devices import on_meta

MIXES: dict[str, Mix] = {"mixup": mixup(0.4), "cutmix": cutmix(1.0)}


@pytest.fixture(params=MIXES)
def mix(request: pytest.FixtureRequest) -> Mix:
    return MIXES[request.param]


def noise(size: int, seed: int = 7) -> Tensor:
    return random.bits(random.key(seed), (size, 3, 32, 32)).to(torch.uint8)


def labels_of(size: int) -> Tensor:
    return torch.arange(size) % 10


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0, 40.0])
def test_weights_have_the_beta_distribution(alpha: float) -> None:
    """Kolmogorov and Smirnov's test of the lower half, where float32 resolves the weights."""
    special = pytest.importorskip("scipy.special")
    drawn = base.beta(random.key(0), alpha, 20_000).double()
    lower = drawn[drawn < 0.5].sort().values
    n = len(lower)
    assert abs(n - 10_000) < 4 * math.sqrt(5000)
    expected = 2 * torch.from_numpy(special.betainc(alpha, alpha, lower.numpy()))
    assert (expected - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 7.0])
def test_log_gamma_is_torchs(alpha: float) -> None:
    """Two samples of Kolmogorov and Smirnov's test."""
    n = 20_000
    ours = base.log_gamma(random.key(0), alpha, (n,)).double().sort().values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.distributions.Gamma(alpha, 1.0).sample((n,)).double().log()
    ranks = torch.searchsorted(ours, theirs.sort().values) / n
    assert (ranks - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 * math.sqrt(2 / n)


def test_the_ends_of_alpha() -> None:
    for alpha in (base.SMALLEST_ALPHA, base.LARGEST_ALPHA):
        drawn = base.beta(random.key(0), alpha, 1000)
        assert drawn.isfinite().all()
        assert (drawn.min() >= 0) & (drawn.max() <= 1)


# Images and targets ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 7])
def test_targets_are_the_parts_of_the_images(mix: Mix, size: int) -> None:
    images, labels = noise(size), labels_of(size)
    kept = images.clone()
    mixed, targets = mix(random.key(1), images, labels)
    assert torch.equal(images, kept)
    assert mixed.shape == images.shape
    assert targets.shape == (size, 10)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    partner = mixing.partners(torch.arange(size))
    own = targets.gather(1, labels[:, None])[:, 0]
    for i, j in enumerate(partner.tolist()):
        weight = 1.0 if i == j else own[i]
        if mix is MIXES["mixup"]:
            expected = (weight * images[i] + (1 - weight) * images[j]) / 255
            torch.testing.assert_close(mixed[i], expected, rtol=0, atol=1e-6)
        else:
            assert mixed.dtype == torch.uint8
            is_partner = (mixed[i] != images[i]).any(0)
            assert torch.equal(mixed[i], torch.where(is_partner, images[j], images[i]))
            assert abs((1 - is_partner.double().mean()) - weight) < 3 / 1024
            rows, columns = is_partner.any(1).sum(), is_partner.any(0).sum()
            assert is_partner.sum() >= rows * columns - 3, "a rectangle, but for equal pixels"


def test_rectangles_are_torchvisions() -> None:
    """The parts of CutMix are distributed as in torchvision's, drawn one by one."""
    from torchvision.transforms import v2

    count = 4000
    black_and_white = 255 * (torch.arange(count) % 2).to(torch.uint8)
    images = black_and_white[:, None, None, None].expand(count, 1, 32, 32)
    _, targets = cutmix(1.0, num_classes=2)(random.key(0), images, torch.arange(count) % 2)
    ours = targets.gather(1, (torch.arange(count) % 2)[:, None])[:, 0]
    transform = v2.CutMix(alpha=1.0, num_classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([images[:2]]) for _ in range(count)]
    theirs = torch.tensor([p["lam_adjusted"] for p in params])
    parts = torch.linspace(0, 1, 65)
    shares = [torch.searchsorted(x.sort().values, parts) / count for x in (ours, theirs)]
    assert (shares[0] - shares[1]).abs().max() < 1.95 * math.sqrt(2 / count)


def test_floating_images_get_what_uint8_images_get(mix: Mix) -> None:
    images, labels = noise(6), labels_of(6)
    coarse, targets = mix(random.key(1), images, labels)
    fine, same = mix(random.key(1), images / 255, labels)
    coarse = coarse if coarse.is_floating_point() else coarse / 255
    assert torch.equal(targets, same)
    assert torch.equal(coarse, fine)
    half, _ = mix(random.key(1), (images / 255).bfloat16(), labels)
    assert half.dtype == torch.bfloat16


def test_targets_can_be_mixed_again(mix: Mix) -> None:
    images, targets = mixup(1.0)(random.key(0), noise(4), labels_of(4))
    _, again = mix(random.key(1), images, targets)
    torch.testing.assert_close(again.sum(1), torch.ones(4))


def test_a_shard_of_even_rows_gets_what_the_batch_gets(mix: Mix) -> None:
    images, labels, key = noise(8), labels_of(8), random.key(3)
    whole = mix(key, images, labels)
    part = mix(random.from_row(key, 4), images[4:], labels[4:])
    assert torch.equal(part[0], whole[0][4:])
    assert torch.equal(part[1], whole[1][4:])


def test_a_pair_does_not_depend_on_the_batch(mix: Mix) -> None:
    images, labels = noise(8), labels_of(8)
    whole = mix(random.key(3), images, labels)
    part = mix(random.key(3), images[:4], labels[:4])
    assert torch.equal(part[0], whole[0][:4])


def test_vmaps(mix: Mix) -> None:
    keys, images = random.split(random.key(0), 2), noise(8).reshape(2, 4, 3, 32, 32)
    labels = labels_of(8).reshape(2, 4)
    mixed, targets = torch.vmap(mix)(keys, images, labels)
    for i in range(2):
        alone = mix(keys[i], images[i], labels[i])
        assert torch.equal(mixed[i], alone[0])
        assert torch.equal(targets[i], alone[1])


def test_compiles_to_one_graph(mix: Mix) -> None:
    compiled = torch.compile(mix, backend="eager", fullgraph=True, dynamic=False)
    arguments = (random.key(0), noise(4), labels_of(4))
    for a, b in zip(compiled(*arguments), mix(*arguments), strict=True):
        assert torch.equal(a, b)


def test_runs_on_the_device_of_its_arguments(mix: Mix) -> None:
    on_meta(mix, random.key(0), noise(4), labels_of(4))


# Losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, torch.tensor(0.1)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_losses_of_targets(smoothing: Any, is_weighted: bool) -> None:
    """Against the definition in float64, and against labels for targets of one class."""
    logits = random.normal(random.key(0), (6, 10))
    targets = torch.softmax(random.normal(random.key(1), (6, 10)), -1)
    weights = torch.linspace(0.5, 2, 10) if is_weighted else None
    loss = losses.smoothed_cross_entropy(smoothing, weights)
    smooth = (1 - smoothing) * targets.double() + smoothing / 10
    terms = -torch.log_softmax(logits.double(), -1)
    expected = (smooth * terms * (1 if weights is None else weights.double())).sum(-1)
    torch.testing.assert_close(loss(logits, targets).double(), expected, rtol=1e-5, atol=1e-6)
    labels = labels_of(6)
    one = mixing.as_targets(labels, 10)
    torch.testing.assert_close(loss(logits, one), loss(logits, labels))
    double = loss(logits.double(), targets)
    assert double.dtype == torch.float64


# Steps -------------------------------------------------------------------------------------------


def step_of(mix: Mix | None, **options: Any) -> tuple[Any, Any]:
    model, optimizer = models.lenet(), optim.sgd(0.1, momentum=0.9)
    policy = options.get("policy")
    start = {} if policy is None else {"policy": policy}
    state = init_train_state(model, optimizer, key=random.key(0), **start)
    return make_train_step(model, optimizer, mix=mix, **options), state


def test_a_step_is_that_of_its_mixed_batch(mix: Mix) -> None:
    """Loss, metrics and gradients, in float64, against images and targets mixed beforehand."""
    step, state = step_of(mix, policy=FP64)
    batch = Batch(noise(6), labels_of(6))
    after, metrics = step(state, batch)
    key = random.fold_in(state.key, state.step)
    images, targets = mix(random.fold_in(key, 2), *batch)
    x = normalize()(images).double()
    params = {n: p.clone().requires_grad_() for n, p in state.variables.params.items()}
    logits, _ = models.lenet().apply(state.variables._replace(params=params), x)
    each = -(targets.double() * torch.log_softmax(logits, -1)).sum(-1)
    grads = torch.autograd.grad(each.mean(), list(params.values()))
    torch.testing.assert_close(metrics.loss, each.sum().detach())
    assert metrics.correct == (logits.argmax(-1) == targets.argmax(-1)).sum()
    for (name, p), g in zip(params.items(), grads, strict=True):
        torch.testing.assert_close(after.variables.params[name], p.detach() - 0.1 * g, msg=name)


def test_shards_make_the_step_of_the_whole_batch(mix: Mix) -> None:
    """The images that each rank sees, in a step whose preprocessing records them."""
    seen: list[Tensor] = []

    def record(images: Tensor) -> Tensor:
        seen.append(images)
        return normalize()(images.clone())

    step, state = step_of(mix, preprocess=record)
    images, labels = noise(8), labels_of(8)
    step(state, Batch(images, labels))
    for first in (0, 4):
        rows = slice(first, first + 4)
        step(state, Shard(images[rows], labels[rows], torch.tensor(first)))
    assert torch.equal(seen[0], torch.cat(seen[1:]))


# Recipes -----------------------------------------------------------------------------------------


def test_a_recipe_names_its_mix() -> None:
    recipe = recipes.get("blitz").replace(augment=("random_flip", "rand_augment:1,5", "mixup:0.2"))
    mixed, targets = recipes.make_mix(recipe, 7)(random.key(0), noise(4), labels_of(4))
    assert targets.shape == (4, 7)
    assert mixed.is_floating_point()
    assert recipes.make_augment(recipe)(random.key(0), noise(4)).dtype == torch.uint8
    assert recipes.is_own(recipe)
    assert recipes.make_mix(recipes.get("blitz"), 10) is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several": ({"augment": ("mixup:1", "cutmix:1")}, "'mixup:1' and 'cutmix:1'.*leave one out"),
    "not last": ({"augment": ("mixup:1", "random_flip")}, "'mixup:1' before 'random_flip'.*last"),
    "no alpha": ({"augment": ("cutmix",)}, "'cutmix' needs a strength; give cutmix:ALPHA"),
    "two": ({"augment": ("mixup:1,10",)}, "has 2 numbers, and mixup takes 1; give mixup:ALPHA"),
    "zero": ({"augment": ("mixup:0",)}, "mixup needs alpha from 0.001 to 1000, not 0"),
    "text": ({"augment": ("mixup:x",)}, "what follows the colon must be a number"),
    "private": ({"augment": ("mixup:1",), "dp_clip": 1.0}, "example of two images, and dp_clip"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recipe_cannot_mix_is_told(name: str) -> None:
    changes, told = REFUSED[name]
    with pytest.raises(UsageError, match=told):
        recipes.get("blitz").replace(**changes)


def test_processes_need_pairs() -> None:
    recipe = recipes.get("blitz").replace(augment=("mixup:1",), batch_size=6)
    with pytest.raises(UsageError, match="2 processes divide a batch of 6 into odd parts"):
        recipes.check_sizes(recipe, "x", 60, 0, 0, 2)
    recipes.check_sizes(recipe.replace(batch_size=8), "x", 80, 0, 0, 2)
    with pytest.raises(UsageError, match="a batch of 2 into odd parts"):
        recipes.check_sizes(recipe.replace(batch_size=8), "x", 82, 0, 0, 2)
    recipes.check_sizes(recipe, "x", 60, 0, 0, 1)


def test_a_name_of_a_mix_is_taken() -> None:
    with pytest.raises(ValueError, match="'mixup' is one of fcifar's"):
        recipes.register_augment("mixup", lambda: lambda key, images: images)


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda: mixup(0.0), r"mixup needs alpha from 0.001 to 1000, not 0.0"),
        (lambda: cutmix(math.nan), r"cutmix needs alpha from 0.001 to 1000, not nan"),
        (
            lambda: mixup(1.0)(random.key(0), noise(2)[0], labels_of(2)),
            r"\[B, C, H, W\], not torch.uint8 \[3, 32, 32\]",
        ),
    ],
)
def test_misuse_is_told(misuse: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        misuse()
