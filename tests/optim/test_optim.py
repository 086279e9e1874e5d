"""Optimizers and schedules: equal to torch.optim in float64, and true to their definitions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fcifar import averaging, models, optim, random, schedules, tree
from fcifar.models.base import Model, Variables
from fcifar.models.lenet import _LeNet
from fcifar.optim import Optimizer
from fcifar.precision import FP64
from fcifar.step import Batch, init_train_state, make_train_step

TwinOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
L2 = 0.01


class PlainMuon(torch.optim.Optimizer):
    """Muon for kernels by the singular value decomposition, Nesterov's momentum for the others."""

    def __init__(self, params: list[nn.Parameter], rate: float) -> None:
        super().__init__(params, {"rate": rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            momentum = 0.6 if p.ndim == 4 else 0.85
            trace = self.state[p].setdefault("trace", torch.zeros_like(p))
            trace.mul_(momentum).add_(p.grad)
            update = p.grad + momentum * trace
            if p.ndim == 4:
                u, s, vh = torch.linalg.svd(update.flatten(1), full_matrices=False)
                s = s / s.norm()
                for _ in range(3):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                update = (u * s @ vh).reshape(p.shape)
            p -= self.param_groups[0]["rate"] * update


class PlainScheduleFree(torch.optim.Optimizer):
    """The three sequences of the paper, for a constant rate; ``b2`` makes it AdamW's."""

    def __init__(self, params: list[nn.Parameter], rate: float, b2: float | None = None) -> None:
        super().__init__(params, {"rate": rate, "b2": b2, "count": 0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["count"] += 1
        k, b2 = group["count"], group["b2"]
        for y in group["params"]:
            state = self.state[y]
            z, x = (state.setdefault(name, y.clone()) for name in ("z", "x"))
            direction = y.grad
            if b2:
                v = state.setdefault("v", torch.zeros_like(y))
                v.mul_(b2).add_((1 - b2) * y.grad**2)
                direction = y.grad / ((v / (1 - b2**k)).sqrt() + 1e-8)
            z -= group["rate"] * direction
            x += (z - x) / k
            y.copy_(0.1 * z + 0.9 * x)


TWINS: dict[str, tuple[Optimizer, TwinOptimizer]] = {
    "sgd": (optim.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": (
        optim.sgd(0.05, momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    ),
    "nesterov": (
        optim.sgd(0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    ),
    "momentum and L2": (
        optim.chain(optim.add_decayed_weights(L2), optim.sgd(0.05, momentum=0.9)),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=L2),
    ),
    "adam": (optim.adam(1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
    "adam and L2": (
        optim.chain(optim.add_decayed_weights(L2), optim.adam(1e-3)),
        lambda p: torch.optim.Adam(p, 1e-3, weight_decay=L2),
    ),
    "adamw": (
        optim.adamw(1e-3, weight_decay=L2),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=L2),
    ),
    "muon": (optim.muon_and_sgd(0.05, dtype=torch.float64), lambda p: PlainMuon(p, 0.05)),
    "schedule_free": (optim.schedule_free_sgd(0.3), lambda p: PlainScheduleFree(p, 0.3)),
    "schedule_free_adamw": (
        optim.schedule_free_adamw(1e-3),
        lambda p: PlainScheduleFree(p, 1e-3, 0.999),
    ),
}


def test_every_registered_optimizer_has_a_twin() -> None:
    assert set(optim.OPTIMIZERS) <= set(TWINS)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TWINS)
def test_fifty_float64_steps_equal_the_torch_twin(name: str, seed: int, make_batch) -> None:
    """The functional step against nn.Module, loss.backward() and torch.optim."""
    optimizer, make_twin_optimizer = TWINS[name]
    state = init_train_state(models.lenet(), optimizer, key=random.key(seed), policy=FP64)
    step = make_train_step(models.lenet(), optimizer, policy=FP64)

    twin = _LeNet(84, 10).double()
    twin.load_state_dict(state.variables.params)
    twin_optimizer = make_twin_optimizer(list(twin.parameters()))

    for i in range(50):
        batch = make_batch(4, seed=100 * seed + i)
        state, metrics = step(state, batch)

        twin_optimizer.zero_grad()
        # In float32 as far as the step's own preprocessing is: division by 255 comes first.
        images = (batch.images.float() / 255 - 0.5) / 0.5
        logits = twin(images.double())
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        twin_optimizer.step()

        assert abs(metrics.loss / 4 - loss.detach()) < 1e-10
        assert metrics.correct == (logits.argmax(-1) == batch.labels).sum()
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(state.variables.params[key], value, rtol=0, atol=1e-10)


rates = st.floats(1e-6, 1.0)
decays = st.sampled_from([0.0, 0.5, 0.9, 0.999]) | st.floats(0.0, 0.999)
penalties = st.sampled_from([0.0]) | st.floats(1e-6, 0.5)


@st.composite
def twins(draw: st.DrawFn) -> tuple[Optimizer, TwinOptimizer]:
    """An optimizer with any options that both libraries have, and torch's."""
    rate, decay = draw(rates), draw(penalties)
    name = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    if name == "sgd":
        momentum = draw(st.none() | decays)
        nesterov = bool(momentum) and draw(st.booleans())
        ours = optim.sgd(rate, momentum, nesterov=nesterov)
        options = {"momentum": momentum or 0.0, "nesterov": nesterov, "weight_decay": decay}
        return (
            optim.chain(optim.add_decayed_weights(decay), ours),
            lambda p: torch.optim.SGD(p, rate, **options),
        )
    betas, eps = (draw(decays), draw(decays)), draw(st.sampled_from([1e-10, 1e-8, 1e-3]))
    if name == "adam":
        ours = optim.chain(optim.add_decayed_weights(decay), optim.adam(rate, *betas, eps))
        return ours, lambda p: torch.optim.Adam(p, rate, betas, eps, weight_decay=decay)
    ours = optim.adamw(rate, *betas, eps, weight_decay=decay)
    return ours, lambda p: torch.optim.AdamW(p, rate, betas, eps, weight_decay=decay)


@given(twins(), st.integers(0, 2**31 - 1), st.sampled_from([None, 0.5, 3.0]))
def test_any_options_equal_torchs(
    pair: tuple[Optimizer, TwinOptimizer], seed: int, max_norm: float | None
) -> None:
    """In float64, over a dozen gradients; some elements never have one, and one leaf is empty."""
    optimizer, make_twin = pair
    if max_norm is not None:
        optimizer = optim.chain(optim.clip_by_global_norm(max_norm), optimizer)
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (2, 3), "b": (4,), "c": (), "d": (0,)}
    params = {n: torch.randn(s, generator=generator).double() for n, s in shapes.items()}
    leaves = [nn.Parameter(p.clone()) for p in params.values()]
    twin, state = make_twin(leaves), optimizer.init(params)
    for _ in range(12):
        grads = {n: torch.randn(s, generator=generator).double() for n, s in shapes.items()}
        grads["b"][0] = 0
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        for leaf, g in zip(leaves, grads.values(), strict=True):
            leaf.grad = g.clone()
        if max_norm is not None:
            # torch divides by norm + 1e-6.
            norm = float(tree.norm(grads))
            for leaf in leaves:
                leaf.grad *= min(1.0, max_norm / norm)
        twin.step()
    for found, leaf in zip(params.values(), leaves, strict=True):
        torch.testing.assert_close(found, leaf.detach(), rtol=1e-9, atol=1e-12)


def steps(optimizer: Optimizer, grads: list[Tensor], params: Tensor) -> list[Tensor]:
    """Parameters after each of the gradients."""
    state, path = optimizer.init(params), []
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optim.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clip_by_global_norm_equals_torch(max_norm: float) -> None:
    grads = {"a": random.normal(random.key(0), (3, 4)), "b": random.normal(random.key(1), (5,))}
    clipper = optim.clip_by_global_norm(max_norm)
    clipped, _ = clipper.update(grads, clipper.init(grads), grads)
    twins = [nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for twin, g in zip(twins, grads.values(), strict=True):
        twin.grad = g.clone()
    nn.utils.clip_grad_norm_(twins, max_norm)
    for twin, c in zip(twins, clipped.values(), strict=True):
        torch.testing.assert_close(c, twin.grad, rtol=1e-5, atol=1e-7)
    assert tree.norm(clipped) <= max_norm * (1 + 1e-6)


def test_clip_by_global_norm_leaves_zero_gradients_alone() -> None:
    zero = torch.zeros(3)
    clipped, _ = optim.clip_by_global_norm(1.0).update(zero, optim.EmptyState(), zero)
    assert torch.equal(clipped, zero)


def test_clip_clamps_each_element() -> None:
    g = torch.tensor([-3.0, 0.5, 2.0])
    assert optim.clip(1.0).update(g, optim.EmptyState(), g)[0].tolist() == [-1.0, 0.5, 1.0]


def test_chain_feeds_each_the_updates_before_it() -> None:
    path = steps(
        optim.chain(optim.scale(2.0), optim.clip(1.0), optim.scale(-1.0)),
        [torch.tensor(3.0)],
        torch.tensor(0.0),
    )
    assert path[0] == -1


@pytest.mark.parametrize("layouts", [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_states_and_parameters_keep_their_layout(name: str, layouts: tuple[int, int]) -> None:
    """Gradients lie as their convolution likes; another layout would be compiled for again."""
    formats = (torch.contiguous_format, torch.channels_last)
    of_params, of_grads = (formats[i] for i in layouts)
    params = random.normal(random.key(0), (4, 3, 2, 2)).contiguous(memory_format=of_params)
    grads = random.normal(random.key(1), (4, 3, 2, 2)).contiguous(memory_format=of_grads)
    optimizer = optim.OPTIMIZERS[name](0.1)
    state = optimizer.init(params)
    updates, after = optimizer.update(grads, state, params)
    assert optim.apply_updates(params, updates).stride() == params.stride()
    for old, new in zip(tree.leaves(state), tree.leaves(after), strict=True):
        assert new.stride() == old.stride()


def test_learning_rate_may_be_a_tensor_and_has_a_gradient() -> None:
    def after(learning_rate: Tensor) -> Tensor:
        return steps(optim.sgd(learning_rate, 0.5), [torch.tensor(1.0)] * 2, torch.tensor(0.0))[-1]

    rate = torch.tensor(0.1)
    assert after(rate) == -(rate + rate * 1.5)
    assert torch.func.grad(after)(rate) == -2.5


def test_a_schedule_is_counted_from_zero_and_in_the_precision_of_the_updates() -> None:
    schedule = schedules.linear_schedule(1.0, 0.0, 10)
    ones = torch.ones((), dtype=torch.float64)
    path = torch.stack(steps(optim.sgd(schedule), [ones] * 12, 0 * ones))
    rates = -torch.diff(path, prepend=torch.zeros(1, dtype=torch.float64))
    expected = [max(0.0, 1 - i / 10) for i in range(12)]
    torch.testing.assert_close(
        rates, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (schedules.constant_schedule(0.3), {0: 0.3, 99: 0.3}),
        (schedules.linear_schedule(1.0, 3.0, 4), {0: 1.0, 1: 1.5, 4: 3.0, 9: 3.0}),
        (schedules.cosine_decay_schedule(2.0, 8), {0: 2.0, 4: 1.0, 8: 0.0, 20: 0.0}),
        (schedules.cosine_decay_schedule(2.0, 8, 0.5), {0: 2.0, 4: 1.5, 8: 1.0}),
        (
            schedules.piecewise_constant_schedule(0.5, {6: 0.5, 3: 0.1}),
            {0: 0.5, 2: 0.5, 3: 0.05, 5: 0.05, 6: 0.025, 99: 0.025},
        ),
        (
            schedules.piecewise_linear_schedule([(2, 0.2), (4.5, 1.0), (10, 0.07)]),
            {0: 0.2, 2: 0.2, 3: 0.52, 4: 0.84, 5: 1 - 0.93 / 11, 10: 0.07, 99: 0.07},
        ),
        # As optax 0.2.8 has piecewise_interpolate_schedule("linear", 0.2, {23: 5.0, 100: 0.07}).
        (
            schedules.piecewise_linear_schedule([(0, 0.2), (23, 1.0), (100, 0.07)]),
            {0: 0.2, 10: 0.5478260869565217, 23: 1.0, 60: 0.5531168831168831, 100: 0.07, 120: 0.07},
        ),
        (
            schedules.warmup(schedules.linear_schedule(1.0, 0.0, 4), 0.0, 1.0, 2),
            {0: 0.0, 1: 0.5, 2: 1.0, 4: 0.5, 6: 0.0},
        ),
    ],
)
def test_schedules_pass_through_their_points(schedule, values: dict[int, float]) -> None:
    for step, value in values.items():
        found = schedule(torch.tensor(step))
        assert found.shape == ()
        assert math.isclose(found, value, abs_tol=1e-6), step


def test_a_piecewise_schedule_is_exact_at_its_points_and_where_it_is_level() -> None:
    points = [(0, 0.1), (3, 0.7), (10, 0.7), (11, 1e-9)]
    schedule = schedules.piecewise_linear_schedule(points)
    for step, value in points:
        assert schedule(torch.tensor(float(step), dtype=torch.float64)) == value
    assert torch.vmap(schedule)(torch.arange(3, 11)).eq(0.7).all()


PARTS: dict[str, Optimizer] = {
    **{name: make(0.1) for name, make in optim.OPTIMIZERS.items()},
    "scheduled": optim.sgd(schedules.linear_schedule(1.0, 0.0, 3), momentum=0.9),
    "add_decayed_weights": optim.add_decayed_weights(0.1),
    "clip": optim.clip(1.0),
    "clip_by_global_norm": optim.clip_by_global_norm(1.0),
    "clip by a tensor": optim.clip_by_global_norm(torch.tensor(1.0)),
    "muon alone": optim.muon(0.1, renormalize=True),
    "freeze_after": optim.freeze_after(2),
    "set_to_zero": optim.set_to_zero(),
    "chain": optim.chain(optim.clip_by_global_norm(1.0), optim.adam(0.1), optim.freeze_after(1)),
    "multi_transform": optim.multi_transform({"a": optim.adam(0.1)}, lambda path, leaf: "a"),
}


@pytest.mark.parametrize("name", PARTS)
def test_without_parameters_there_is_nothing_to_update_but_counts(name: str) -> None:
    """As in optax: ``adam(0.1).init({})`` has a count and two empty moments."""
    first = PARTS[name].init({})
    updates, state = PARTS[name].update({}, first, {})
    assert updates == {}
    assert optim.apply_updates({}, updates) == {}
    for before, after in zip(tree.leaves(first), tree.leaves(state), strict=True):
        if not before.is_floating_point():
            assert (before, after) == (0, 1)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_all_parameters_may_be_frozen(name: str) -> None:
    params = {"w": torch.ones(2, 3, 1, 1)}
    frozen = optim.multi_transform(
        {"trained": optim.OPTIMIZERS[name](0.1), "frozen": optim.set_to_zero()},
        lambda path, leaf: "frozen",
    )
    updates, _ = frozen.update(params, frozen.init(params), params)
    assert tree.equal(optim.apply_updates(params, updates), params)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_a_model_without_parameters_takes_steps(name: str, make_batch) -> None:
    model = Model(
        init=lambda key: Variables({}, {}),
        apply=lambda variables, images, **options: (images.flatten(1)[:, :10], {}),
    )
    optimizer, average = optim.OPTIMIZERS[name](0.1), averaging.ema(0.9)
    state = init_train_state(model, optimizer, key=random.key(0), average=average)
    step = make_train_step(model, optimizer, average=average)
    state, metrics = step(state, make_batch(4))
    assert (state.step, state.variables.params) == (1, {})
    assert metrics.loss.isfinite()


ENDS = ((1.0, 1e-8), (0.1, 1e-5), (1e-8, 1.0), (0.1, 0.03), (3.0, 0.0), (0.0, 0.7), (-0.2, 0.9))


def both_ends(first: Any, last: Any, steps: int) -> dict[str, tuple[schedules.Schedule, Any, Any]]:
    """Each schedule that has two ends, with the values there; of the cosine as alpha has them."""
    return {
        "linear": (schedules.linear_schedule(first, last, steps), first, last),
        "piecewise": (
            schedules.piecewise_linear_schedule([(0, first), (steps / 3, 0.5), (steps, last)]),
            first,
            last,
        ),
        "cosine": (schedules.cosine_decay_schedule(first, steps, 0.7), first, first * 0.7),
        "cosine to 0": (schedules.cosine_decay_schedule(first, steps), first, first * 0.0),
        "joined": (
            schedules.join_schedules(
                [schedules.linear_schedule(first, 0.3, 1), schedules.linear_schedule(0.3, last, 4)],
                [steps - 4],
            ),
            first,
            last,
        ),
        "warmup": (
            schedules.warmup(schedules.constant_schedule(last), first, 0.3, steps),
            first,
            last,
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [5, 10, 1000, 3**11])
@pytest.mark.parametrize("ends", ENDS)
def test_schedules_are_exact_at_both_ends(
    ends: tuple[float, float], steps: int, dtype: torch.dtype
) -> None:
    """Of numbers and of tensors, from counts that are whole and that are not, and mapped."""
    given = torch.tensor(ends, dtype=dtype)
    for first, last in (ends, tuple(given)):
        for name, (schedule, start, end) in both_ends(first, last, steps).items():
            expected = torch.stack([torch.as_tensor(v, dtype=dtype) for v in (start, end)])
            counts = torch.tensor([0, steps], dtype=dtype)
            for found in (
                schedule(counts),
                torch.vmap(schedule)(counts),
                torch.stack([schedule(count) for count in counts]),
                schedule(torch.tensor([0, steps + 17], dtype=dtype)),
            ):
                assert found.dtype == dtype
                assert torch.equal(found, expected), name
            if dtype == torch.float32:
                assert torch.equal(schedule(counts.long()), expected), name


def test_schedules_map_over_their_ends() -> None:
    firsts, lasts = torch.tensor([x[0] for x in ENDS]), torch.tensor([x[1] for x in ENDS])
    for name in both_ends(0.1, 0.2, 9):
        found = torch.vmap(
            lambda a, b, name=name: both_ends(a, b, 9)[name][0](torch.tensor([0, 4, 9]))
        )(firsts, lasts)
        alone = [both_ends(a, b, 9)[name][0](torch.tensor([0, 4, 9])) for a, b in ENDS]
        torch.testing.assert_close(found, torch.stack(alone), rtol=1e-6, atol=1e-7)
        ends = [both_ends(a, b, 9)[name][1:] for a, b in zip(firsts, lasts, strict=True)]
        assert torch.equal(found[:, [0, 2]], torch.stack([torch.stack(pair) for pair in ends]))


def test_a_line_keeps_its_bits_between_its_ends() -> None:
    """Those of the sum that it always was: runs of before come out the same."""
    counts = torch.arange(100)
    for first, last in ENDS:
        line = first + (last - first) * (counts / 100).clamp(0, 1)
        assert torch.equal(schedules.linear_schedule(first, last, 100)(counts), line)


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 10**6])
@pytest.mark.parametrize("base", [0.9, 0.999, 0.999999])
def test_bias_correction_keeps_its_digits(base: float, count: int) -> None:
    """1 - base**count in float32, against exact arithmetic on integers."""
    from fractions import Fraction

    exact = (
        -math.expm1(count * math.log(base)) if count > 1000 else float(1 - Fraction(base) ** count)
    )
    for b in (base, torch.tensor(base, dtype=torch.float64)):
        found = optim.transforms.one_minus_power(b, torch.tensor(count), torch.float32)
        assert math.isclose(found, exact, rel_tol=3e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.sgd(0.1, nesterov=True), "give momentum"),
        (lambda: optim.clip_by_global_norm(0.0), "above 0"),
        (lambda: optim.clip(-1.0), "above 0"),
        (lambda: schedules.linear_schedule(1, 0, 0), "at least 1 step"),
        (lambda: schedules.piecewise_linear_schedule([(0, 1.0)]), "two or more"),
        (lambda: schedules.piecewise_linear_schedule([(3, 1.0), (3, 0.5)]), "increase"),
        (lambda: schedules.join_schedules([schedules.constant_schedule(1)], [3]), "one increasing"),
    ],
)
def test_misuse_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_variables_and_batch_are_what_the_twin_reads(make_batch) -> None:
    """The parameter names are those of the tutorial's state_dict, in its order."""
    variables = models.lenet().init(random.key(0))
    assert isinstance(variables, Variables)
    assert isinstance(make_batch(), Batch)
    assert list(variables.params) == list(_LeNet(84, 10).state_dict())
