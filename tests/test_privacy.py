"""Private training: clipped sums against a loop, noise by its moments, and the step around them."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import augment, grads, models, optim, privacy, random, tree
from fcifar.precision import FP64
from fcifar.privacy import add_noise, clipped_sum, dp_gradient
from fcifar.step import Batch, TrainState, init_train_state, make_train_step
from fcifar.tree import Tree
from tests.helpers.small import make_model

RATE = 0.1
OPTIMIZER = optim.sgd(RATE)


def gradients(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Those of six examples, of very different norms, the first of them 0."""
    a, b = random.split(random.key(seed))
    size = scale * torch.tensor([0.0, 1e-3, 0.1, 1.0, 10.0, 1e4], dtype=torch.float64)
    return {
        "weight": random.normal(a, (6, 4, 3)).double() * size[:, None, None],
        "bias": random.normal(b, (6,)).double() * size,
    }


def start(model: models.Model, seed: int = 0) -> TrainState:
    return init_train_state(model, OPTIMIZER, key=random.key(seed), policy=FP64)


def step_of(model: models.Model, clip: float, noise: float, **options: Any) -> Any:
    reduction = options.setdefault("reduction", torch.mean)
    chunk_size = options.pop("chunk_size", None)
    private = dp_gradient(clip, noise, reduction=reduction, chunk_size=chunk_size)
    return make_train_step(model, OPTIMIZER, policy=FP64, gradient=private, **options)


def moved(after: TrainState, before: TrainState) -> Tree:
    """The gradient that a step descended."""
    a, b = after.variables.params, before.variables.params
    return tree.map(lambda x, y: (y - x) / RATE, a, b)


# Clipped sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-6, 0.5, 1e9])
def test_a_clipped_sum_equals_a_loops(max_norm: float) -> None:
    each = gradients()
    expected = tree.map(lambda leaf: torch.zeros_like(leaf[0]), each)
    for i in range(6):
        one = tree.map(lambda leaf, i=i: leaf[i], each)
        norm = float(tree.norm(one))
        expected = tree.map(lambda s, g, n=norm: s + g / max(1.0, n / max_norm), expected, one)
    for most in (max_norm, torch.tensor(max_norm, dtype=torch.float64)):
        torch.testing.assert_close(clipped_sum(each, most), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("max_norm", [1e-6, 0.5, 1e9])
def test_one_example_changes_a_clipped_sum_by_the_norm_at_most(max_norm: float) -> None:
    whole = gradients()
    for i in range(6):
        others = tree.map(lambda leaf, i=i: torch.cat([leaf[:i], leaf[i + 1 :]]), whole)
        change = tree.map(torch.sub, clipped_sum(whole, max_norm), clipped_sum(others, max_norm))
        assert tree.norm(change) <= max_norm * (1 + 1e-6) + 1e-9


# Noise -------------------------------------------------------------------------------------------


def test_without_parameters_there_is_nothing_to_clip_or_to_noise(make_batch) -> None:
    assert clipped_sum({}, 1.0) == {}
    assert add_noise(random.key(0), {}, 1.0) == {}
    model = models.Model(
        init=lambda key: models.Variables({}, {}),
        apply=lambda variables, images, **options: (images.flatten(1)[:, :10], {}),
    )
    state, metrics = step_of(model, 1.0, 1.0)(start(model), make_batch(4))
    assert (state.variables.params, bool(metrics.loss.isfinite())) == ({}, True)


def test_noise_has_the_deviation_asked_for_and_comes_from_the_key() -> None:
    zeros = {"a": torch.zeros(300, 200), "b": torch.zeros(40_000), "c": torch.zeros(())}
    noise = add_noise(random.key(0), zeros, 2.5)
    flat = torch.cat([leaf.flatten() for leaf in tree.leaves(noise)]).double()
    assert abs(flat.std() - 2.5) < 0.02
    assert abs(flat.mean()) < 0.03
    assert abs((flat.abs() < 2.5).double().mean() - 0.6827) < 0.006
    assert abs(torch.corrcoef(torch.stack([flat[:40_000], flat[40_000:80_000]]))[0, 1]) < 0.02
    assert tree.equal(add_noise(random.key(0), zeros, 2.5), noise)
    other = add_noise(random.key(1), zeros, 2.5)
    assert all(
        not torch.equal(a, b) for a, b in zip(*map(tree.leaves, (noise, other)), strict=True)
    )
    ones = tree.map(torch.ones_like, zeros)
    torch.testing.assert_close(
        add_noise(random.key(0), ones, torch.tensor(2.5)), tree.map(lambda n: 1 + n, noise)
    )
    assert tree.equal(add_noise(random.key(0), ones, 0.0), ones)


# The step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [torch.mean, torch.sum])
@pytest.mark.parametrize("name", ["lenet", "conv3"])
def test_without_noise_and_bound_it_is_the_plain_step(
    name: str, reduction: Any, make_batch
) -> None:
    """With augmentation, whose draws stay what they are; the metrics are the batch's."""
    model, batch = models.MODELS[name](dropout=0.0), make_batch(7)
    state, images = start(model), augment.chain(augment.random_flip(), augment.random_crop(4))
    plain = make_train_step(model, OPTIMIZER, policy=FP64, reduction=reduction, augment=images)
    expected = plain(state, batch)
    for size in (None, 1, 3):
        private = step_of(model, 1e9, 0.0, reduction=reduction, augment=images, chunk_size=size)
        found = private(state, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
        assert tree.structure(found) == tree.structure(expected)


@pytest.mark.parametrize("reduction", [torch.mean, torch.sum])
def test_it_descends_the_clipped_sum(reduction: Any, make_batch) -> None:
    """That of the plain steps with each example alone."""
    model, batch, most = models.lenet(), make_batch(5), 1.5
    state = start(model)
    alone = []
    for i in range(5):
        one = Batch(batch.images[i : i + 1], batch.labels[i : i + 1])
        after, _ = make_train_step(model, OPTIMIZER, policy=FP64)(state, one)
        alone.append(moved(after, state))
    norms = [float(tree.norm(g)) for g in alone]
    assert min(norms) < most < max(norms), "some are clipped"
    parts = [
        tree.map(lambda x, n=n: x / max(1, n / most), g) for n, g in zip(norms, alone, strict=True)
    ]
    expected = grads.add_up(parts)
    if reduction is torch.mean:
        expected = tree.map(lambda x: x / 5, expected)
    after, _ = step_of(model, most, 0.0, reduction=reduction)(state, batch)
    torch.testing.assert_close(moved(after, state), expected, rtol=1e-7, atol=1e-10)


def test_the_noise_of_a_step_has_its_deviation_and_follows_its_key(make_batch) -> None:
    model = models.lenet()
    state, later = start(model), start(model)._replace(step=torch.tensor(1))
    other = start(model, 1)._replace(variables=state.variables)

    def noise(state: TrainState, batch: Batch, reduction: Any = torch.mean) -> Tensor:
        """What it adds to the sum of a batch."""
        share = len(batch.labels) if reduction is torch.mean else 1
        noisy, clean = (
            moved(step_of(model, 0.5, sigma, reduction=reduction)(state, batch)[0], state)
            for sigma in (3.0, 0.0)
        )
        flat = tree.map(lambda a, b: share * (a - b).flatten(), noisy, clean)
        return torch.cat(tree.leaves(flat))

    first = noise(state, make_batch(4))
    assert abs(first.std() / 1.5 - 1) < 0.02
    assert abs(first.mean()) < 0.03
    torch.testing.assert_close(noise(state, make_batch(9, seed=2)), first, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(noise(state, make_batch(4), torch.sum), first, rtol=1e-5, atol=1e-8)
    for different in (later, other):
        again = noise(different, make_batch(4))
        assert abs(torch.corrcoef(torch.stack([first, again]))[0, 1]) < 0.03


def test_each_example_draws_for_itself(make_batch) -> None:
    """Dropout: what an example's loss is, those behind it in the batch do not change."""
    model, batch = models.conv3(dropout=0.5), make_batch(6)
    params = model.init(random.key(0)).params

    def objective(params: Tree, batch: Batch, key: Tensor) -> Any:
        images = batch.images / 255
        logits, buffers = model.apply(models.Variables(params, {}), images, key=key, train=True)
        losses = -logits.log_softmax(-1)[:, 0]
        return losses.mean(), (losses, logits, buffers)

    run = dp_gradient(1.0, 0.0)(objective)
    same = tree.map(lambda x: x[:1].expand(6, *x.shape[1:]), batch)
    _, (_, (whole, _, _)) = run(params, same, random.key(1))
    assert len(whole.unique()) == 6, "the same image, six times dropped from otherwise"
    first = tree.map(lambda x: x[:3], same)
    _, (value, (part, _, _)) = run(params, first, random.key(1))
    torch.testing.assert_close(part, whole[:3])
    assert value == part.mean()
    _, (_, (again, _, _)) = run(params, same, random.key(2))
    assert not torch.isclose(again, whole).any()


def test_examples_are_taken_in_the_fewest_parts_of_one_size(monkeypatch) -> None:
    params = {"w": torch.zeros(10), "b": torch.zeros(())}
    monkeypatch.setattr(privacy, "GRADIENTS", 55)  # five examples
    sizes = {n: privacy._chunk_size(params, n) for n in (1, 5, 6, 10, 11, 20)}
    assert sizes == {1: 1, 5: 5, 6: 3, 10: 5, 11: 4, 20: 5}
    monkeypatch.setattr(privacy, "GRADIENTS", 3)
    assert privacy._chunk_size(params, 4) == 1


@pytest.mark.parametrize("name", ["speednet", "resnet18"])
def test_a_network_that_mixes_examples_is_refused(name: str, make_batch) -> None:
    model = make_model(name)
    assert models.mixes_examples(model)
    with pytest.raises(ValueError, match="dp_gradient needs a model without buffers"):
        step_of(model, 1.0, 1.0)(start(model), make_batch())


@pytest.mark.parametrize("name", ["lenet", "conv3"])
def test_one_without_batch_norm_does_not(name: str) -> None:
    assert not models.mixes_examples(make_model(name))


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_norm_is_above_0(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="needs a norm above 0"):
        dp_gradient(*numbers)


@pytest.mark.parametrize("noise", [-1.0, float("nan")])
def test_noise_is_0_or_more(noise: float) -> None:
    with pytest.raises(ValueError, match="needs noise of 0 or more"):
        dp_gradient(1.0, noise)


@pytest.mark.slow
def test_its_numbers_may_be_tensors_of_a_compiled_step(make_batch) -> None:
    model, batch, made = models.lenet(), make_batch(), []

    def counting(graph, inputs):
        made.append(graph)
        return graph

    @functools.partial(torch.compile, backend=counting, fullgraph=True)
    def compiled(clip: Tensor, noise: Tensor, state: TrainState, batch: Batch) -> Any:
        return step_of(model, clip, noise)(state, batch)

    state = start(model)
    for clip, noise in ((1.0, 0.5), (0.3, 2.0)):
        found = compiled(torch.tensor(clip), torch.tensor(noise), state, batch)
        expected = step_of(model, clip, noise)(state, batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert len(made) == 1
