"""Private training: clipped sums against a loop, noise by its moments, and the step around them."""

import functools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import augment, grads, models, optim, privacy, random, tree
from fcifar.precision import FP64
from fcifar.privacy import add_noise, capacity, clipped_sum, dp_gradient, poisson_sample
from fcifar.step import Batch, Sampled, TrainState, init_train_state, make_train_step
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


# Poisson sampling ---------------------------------------------------------------------------------

SIZE, EXPECTED = 60, 12


def samples(count: int) -> Tensor:
    """Which images are in each of ``count`` batches: bool [count, SIZE]."""
    keys = random.split(random.key(3), count)
    rows, present = torch.vmap(lambda key: poisson_sample(key, SIZE, EXPECTED))(keys)
    taken = torch.zeros(count, SIZE, dtype=torch.int64)
    return taken.scatter_add(1, rows, present.long()) > 0


def test_a_sample_has_the_images_whose_words_are_small() -> None:
    for seed, size, batch in ((0, 60, 12), (1, 1000, 3), (2, 7, 7), (3, 5, 1)):
        key = random.key(seed)
        rows, present = poisson_sample(key, size, batch)
        words = random.bits(key, (size,)).double()
        expected = torch.nonzero(words < 2**32 * batch / size).flatten()
        assert rows[present].equal(expected)
        assert len(rows) == len(present) == capacity(size, batch)
        assert not rows[~present].any()
        assert present.sort(descending=True).values.equal(present), "the present rows come first"


def test_each_image_is_as_often_in_a_batch_as_it_should_be() -> None:
    """Bounds of 4.5 standard deviations, of counts that are binomial."""
    count, p = 4000, EXPECTED / SIZE
    taken = samples(count).double()
    deviation = (count * p * (1 - p)) ** 0.5
    assert ((taken.sum(0) - count * p).abs() < 4.5 * deviation).all()
    assert abs(taken.sum() - count * SIZE * p) < 4.5 * deviation * SIZE**0.5
    sizes = taken.sum(1)
    assert abs(sizes.var() / (SIZE * p * (1 - p)) - 1) < 4.5 * (2 / count) ** 0.5


def test_images_and_steps_are_independent() -> None:
    """Correlations between any two images of a batch, and of an image in successive batches."""
    count, p = 4000, EXPECTED / SIZE
    centred = (samples(count).double() - p) / (p * (1 - p)) ** 0.5
    of_images = (centred.T @ centred / count - torch.eye(SIZE)).triu(1)
    of_steps = centred[:-1].T @ centred[1:] / (count - 1)
    for correlations in (of_images[of_images != 0], of_steps.flatten()):
        assert correlations.abs().max() < 5.5 / count**0.5
        assert abs(correlations.square().mean() * count - 1) < 0.15


def test_overflow_is_the_binomial_tail() -> None:
    size, p = 30, Fraction(1, 4)
    for rows in (-1, 0, 7, 20, 29, 30):
        terms = (math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(rows + 1, 31))
        found = privacy.overflow_probability(size, 0.25, rows)
        assert found == pytest.approx(float(sum(terms)), rel=1e-11, abs=0)
    binomial = pytest.importorskip("scipy.stats").binom
    for size, p, rows in ((50_000, 0.01, 600), (50_000, 0.01, 719), (10**6, 1e-5, 60)):
        expected = binomial.sf(rows, size, p)
        assert privacy.overflow_probability(size, p, rows) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "batch"), [(50_000, 1), (50_000, 500), (1000, 999), (60, 12), (3, 2), (1, 1)]
)
def test_the_capacity_is_the_least_that_is_enough(size: int, batch: int) -> None:
    p, rows = privacy.sampling_probability(size, batch), capacity(size, batch)
    assert batch <= rows <= size
    assert privacy.overflow_probability(size, p, rows) <= privacy.OVERFLOW
    assert privacy.overflow_probability(size, p, rows - 1) > privacy.OVERFLOW


def test_the_probability_is_that_of_32_bits() -> None:
    assert privacy.sampling_probability(50_000, 500) == round(2**32 / 100) / 2**32
    assert privacy.sampling_probability(7, 7) == 1
    for size, batch in ((5, 6), (5, 0)):
        with pytest.raises(ValueError, match="a batch has 1 to 5 of 5 images, not"):
            privacy.sampling_probability(size, batch)


def test_what_does_not_fit_is_left_out(monkeypatch) -> None:
    whole, present = poisson_sample(random.key(0), SIZE, EXPECTED)
    monkeypatch.setattr(privacy, "capacity", lambda size, batch: 4)
    rows, fits = poisson_sample(random.key(0), SIZE, EXPECTED)
    assert fits.all()
    assert rows.equal(whole[present][:4])


def sampled(make_batch, count: int = 9, seed: int = 0) -> Sampled:
    """A batch with four absent rows, among them its first and its last."""
    batch = make_batch(count, seed=seed)
    present = torch.arange(count) % 2 == 1
    return Sampled(batch.images, batch.labels, present)


@pytest.mark.parametrize("reduction", [torch.mean, torch.sum])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_sampled_step_descends_the_clipped_sum_of_the_present(
    reduction: Any, chunk_size: int | None, make_batch
) -> None:
    """In float64, divided by the expected size, whatever the number of images."""
    model, batch, most, expected_size = models.lenet(), sampled(make_batch), 1.5, 7
    state = start(model)
    total = tree.zeros_like(state.variables.params)
    norms, losses = [], []
    for i in batch.present.nonzero().flatten().tolist():
        one = Batch(batch.images[i : i + 1], batch.labels[i : i + 1])
        after, metrics = make_train_step(model, OPTIMIZER, policy=FP64)(state, one)
        gradient = moved(after, state)
        norms.append(float(tree.norm(gradient)))
        losses.append(float(metrics.loss))
        total = tree.map(lambda t, g, n=norms[-1]: t + g / max(1, n / most), total, gradient)
    assert min(norms) < most < max(norms), "some are clipped"
    if reduction is torch.mean:
        total = tree.map(lambda x: x / expected_size, total)
    step = sampled_step(model, most, 0.0, expected_size, chunk_size, reduction)
    after, metrics = step(state, batch)
    torch.testing.assert_close(moved(after, state), total, rtol=1e-7, atol=1e-10)
    assert (int(metrics.count), len(losses)) == (4, 4)
    assert float(metrics.loss) == pytest.approx(sum(losses), rel=1e-10)


def sampled_step(
    model: models.Model,
    clip: float,
    noise: float,
    expected: int,
    chunk_size: int | None = None,
    reduction: Any = torch.mean,
) -> Any:
    private = dp_gradient(
        clip, noise, batch_size=expected, chunk_size=chunk_size, reduction=reduction
    )
    return make_train_step(
        *(model, OPTIMIZER),
        policy=FP64,
        gradient=private,
        reduction=reduction,
        augment=augment.random_flip(0.0),
    )


def test_absent_rows_change_no_bit(make_batch) -> None:
    """Neither their images, which may be NaN, nor their labels."""
    model, batch = models.conv3(dropout=0.2), sampled(make_batch)
    images = batch.images.double() / 255
    step = sampled_step(model, 1.0, 0.5, 5)
    absent = ~batch.present[:, None, None, None]
    others = Sampled(
        torch.where(absent, torch.nan, images),
        torch.where(batch.present, batch.labels, 9 - batch.labels),
        batch.present,
    )
    assert tree.equal(step(start(model), batch._replace(images=images)), step(start(model), others))


def test_an_empty_batch_moves_by_the_noise_alone(make_batch) -> None:
    model, batch = models.lenet(), sampled(make_batch)
    batch = batch._replace(present=torch.zeros(9, dtype=torch.bool))
    after, metrics = sampled_step(model, 2.0, 0.5, 4)(start(model), batch)
    assert (float(metrics.loss), int(metrics.correct), int(metrics.count)) == (0.0, 0, 0)
    flat = torch.cat([leaf.flatten() for leaf in tree.leaves(moved(after, start(model)))])
    assert abs(flat.std() / (2.0 * 0.5 / 4) - 1) < 0.02
    still, _ = sampled_step(model, 2.0, 0.0, 4)(start(model), batch)
    assert tree.equal(still.variables, start(model).variables)


def test_a_full_batch_is_the_plain_private_step(make_batch) -> None:
    model, batch = models.conv3(dropout=0.2), make_batch(6)
    full = Sampled(*batch, torch.ones(6, dtype=torch.bool))
    plain = step_of(model, 1.0, 0.5, augment=augment.random_flip(0.0))
    assert tree.equal(
        sampled_step(model, 1.0, 0.5, 6)(start(model), full), plain(start(model), batch)
    )


@pytest.mark.slow
def test_a_sampled_step_compiles_once(make_batch) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    model = models.lenet()
    step = sampled_step(model, 1.0, 0.5, 5)
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    for seed in range(2):
        batch = sampled(make_batch, seed=seed)._replace(present=torch.arange(9) < 3 + seed)
        assert tree.equal(compiled(start(model, seed), batch), step(start(model, seed), batch))
    assert len(graphs) == 1


def test_a_sampled_step_maps_over_replicas(make_batch) -> None:
    model = models.lenet()
    step = sampled_step(model, 1.0, 0.5, 5)
    pairs = [(start(model, i), sampled(make_batch, seed=i)) for i in range(2)]
    states, batches = tree.map(lambda *xs: torch.stack(xs), *pairs)
    together = torch.vmap(step)(states, batches)
    for i, pair in enumerate(pairs):
        one = tree.map(lambda x, i=i: x[i], together)
        torch.testing.assert_close(one, step(*pair), rtol=1e-6, atol=1e-9)
