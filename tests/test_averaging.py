"""Averages of variables: true to plain loops in float64, on any tree, mapped and compiled."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import averaging, models, random, schedules, tree
from fcifar.averaging import Average
from fcifar.models.base import Variables

AVERAGES = {
    "none": averaging.none(),
    "ema": averaging.ema(0.9),
    "ema, every 3": averaging.ema(0.9, every=3),
    "ema, scheduled": averaging.ema(schedules.linear_schedule(0.0, 0.9, 10)),
    "swa": averaging.swa(3),
    "swa, every 2": averaging.swa(3, every=2),
    "lookahead": averaging.lookahead(0.7, every=3),
    "lookahead, scheduled": averaging.lookahead(lambda count: 0.8 * (count / 12) ** 3),
}
every_average = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)


def some_variables(seed: int = 0, dtype: torch.dtype = torch.float64) -> Variables:
    keys = random.split(random.key(seed), 3)
    return Variables(
        params={
            "conv.weight": random.normal(keys[0], (4, 3, 3)).to(dtype),
            "bias": random.normal(keys[1], (4,)).to(dtype),
        },
        buffers={
            "running_mean": random.normal(keys[2], (4,)).to(dtype),
            "num_batches_tracked": torch.tensor(0),
        },
    )


@every_average
def test_there_may_be_nothing_to_average(average: Average) -> None:
    state = average.init({})
    variables, state = average.update({}, state)
    assert (variables, average.value(variables, state)) == ({}, {})


def train_on(variables: Variables, i: int) -> Variables:
    """Any change that depends on where the variables are."""

    def move(leaf: Tensor) -> Tensor:
        return 0.9 * leaf + 0.1 * (i + 1) if leaf.is_floating_point() else leaf + 1

    return tree.map(move, variables)


def run(average: Average, variables: Variables, steps: int) -> tuple[Variables, Any]:
    state = average.init(variables)
    for i in range(steps):
        variables, state = average.update(train_on(variables, i), state)
    return variables, state


def test_no_average_is_no_state_and_the_variables_themselves() -> None:
    variables = some_variables()
    average = averaging.none()
    assert average.init(variables) == ()
    assert average.update(variables, ()) == (variables, ())
    assert average.value(variables, ()) is variables


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("growing", [False, True])
def test_ema_equals_a_loop_and_leaves_the_variables_alone(every: int, growing: bool) -> None:
    decay = (lambda count: 0.9 * count / (count + 2)) if growing else 0.9
    average = averaging.ema(decay, every)
    variables, state = run(average, some_variables(), 11)

    fast = some_variables()
    slow = {name: leaf.numpy().copy() for name, leaf in tree.named_leaves(fast).items()}
    for i in range(11):
        fast = train_on(fast, i)
        if (i + 1) % every == 0:
            d = 0.9 * (i + 1) / (i + 3) if growing else 0.9
            for name, leaf in tree.named_leaves(fast).items():
                if leaf.is_floating_point():
                    slow[name] = d * slow[name] + (1 - d) * leaf.numpy()
    assert tree.equal(variables, fast)
    value = average.value(variables, state)
    assert tree.structure(value) == tree.structure(variables)
    for name, leaf in tree.named_leaves(value).items():
        expected = torch.tensor(slow[name]) if leaf.is_floating_point() else torch.tensor(11)
        torch.testing.assert_close(leaf, expected, rtol=1e-14, atol=1e-14)
    assert state.count == 11


@pytest.mark.parametrize(("start", "every"), [(1, 1), (4, 3), (6, 6), (12, 1), (20, 5)])
def test_swa_is_the_mean_of_some_steps(start: int, every: int) -> None:
    """Before the first of them it is the latest variables."""
    average = averaging.swa(start, every)
    variables = some_variables()
    state, seen = average.init(variables), []
    for i in range(12):
        before = train_on(variables, i)
        variables, state = average.update(before, state)
        assert variables is before
        if i + 1 >= start and (i + 1 - start) % every == 0:
            seen.append(variables)
        value = average.value(variables, state)
        expected = averaging.mean(seen or [variables])
        for name, leaf in tree.named_leaves(value).items():
            if leaf.is_floating_point():
                other = tree.named_leaves(expected)[name]
                torch.testing.assert_close(leaf, other, rtol=1e-13, atol=1e-14)
            else:
                assert leaf == i + 1


def test_lookahead_equals_a_loop_over_parameters_and_buffers() -> None:
    """The decay of Jordan's recipe, every five of twelve steps."""
    total = 12
    average = averaging.lookahead(lambda count: 0.95**5 * (count / total) ** 3, every=5)
    variables, state = run(average, some_variables(), total)

    fast = some_variables()
    slow = tree.map(torch.clone, fast)
    for i in range(total):
        fast = train_on(fast, i)
        if (i + 1) % 5 == 0:
            d = 0.95**5 * ((i + 1) / total) ** 3
            for s, f in zip(tree.leaves(slow), tree.leaves(fast), strict=True):
                if s.is_floating_point():
                    s.copy_(d * s + (1 - d) * f)
                    f.copy_(s)
    for found, expected in ((variables, fast), (average.value(variables, state), slow)):
        for name, leaf in tree.named_leaves(found).items():
            other = tree.named_leaves(expected)[name]
            if leaf.is_floating_point():
                torch.testing.assert_close(leaf, other, rtol=1e-14, atol=1e-14)
            else:
                assert leaf == total


def test_a_growing_decay_gives_the_plain_mean() -> None:
    average = averaging.ema(lambda count: count / (count + 1))
    variables = some_variables()
    seen, state = [variables], average.init(variables)
    for i in range(20):
        variables, state = average.update(train_on(variables, i), state)
        seen.append(variables)
    found = average.value(variables, state).params["bias"]
    mean = torch.stack([v.params["bias"] for v in seen]).mean(0)
    torch.testing.assert_close(found, mean, rtol=1e-13, atol=1e-14)


@every_average
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_average_of_equal_values_is_that_value(average: Average, dtype: torch.dtype) -> None:
    start = variables = some_variables(dtype=dtype)
    state = average.init(variables)
    for _ in range(7):
        variables, state = average.update(variables, state)
    assert tree.equal(variables, start)
    assert tree.equal(average.value(variables, state), start)


def test_all_and_nothing_are_exact() -> None:
    start = some_variables()
    kept, state = run(averaging.lookahead(1.0, every=1), start, 3)
    assert tree.equal(kept.params, start.params)
    assert tree.equal(state.average.params, start.params)
    moved, state = run(averaging.ema(0.0), start, 3)
    assert tree.equal(state.average, moved)


def test_a_step_that_is_not_finite_does_no_harm_until_it_counts() -> None:
    average = averaging.ema(0.5, every=2)
    state = average.init(torch.zeros(2))
    _, state = average.update(torch.tensor([float("nan"), float("inf")]), state)
    _, state = average.update(torch.ones(2), state)
    assert state.average.tolist() == [0.5, 0.5]


@every_average
def test_states_hold_tensors_in_memory_of_their_own(average: Average) -> None:
    variables = some_variables()
    state = average.init(variables)
    for i in range(4):
        names = tree.named_leaves(state)
        assert all(isinstance(leaf, Tensor) for leaf in names.values())
        places = [leaf.data_ptr() for leaf in tree.leaves((variables, state))]
        assert len(set(places)) == len(places)
        variables, after = average.update(train_on(variables, i), state)
        assert tree.structure(after) == tree.structure(state)
        for a, b in zip(tree.leaves(after), tree.leaves(state), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
        state = after


@every_average
def test_mapped_over_seeds(average: Average) -> None:
    starts = [some_variables(seed, torch.float32) for seed in range(3)]
    alone = [run(average, start, 6) for start in starts]
    together = torch.vmap(lambda v: run(average, v, 6))(
        tree.map(lambda *xs: torch.stack(xs), *starts)
    )
    for i, expected in enumerate(alone):
        assert tree.equal(tree.map(lambda x, i=i: x[i], together), expected)


def test_mapped_over_decays() -> None:
    start = some_variables()

    def averaged(decay: Tensor) -> Variables:
        average = averaging.ema(decay)
        return average.value(*run(average, start, 5))

    decays = torch.tensor([0.1, 0.9])
    together = torch.vmap(averaged)(decays)
    for i, decay in enumerate(decays):
        assert tree.equal(tree.map(lambda x, i=i: x[i], together), averaged(decay))


@every_average
def test_compiles_to_one_graph_and_never_again(average: Average) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    def update(variables: Variables, state: Any) -> Any:
        variables, state = average.update(tree.map(lambda x: x + 1, variables), state)
        return variables, state, average.value(variables, state)

    compiled = torch.compile(update, backend=counting, fullgraph=True)
    variables = some_variables()
    state = average.init(variables)
    for _ in range(7):
        expected = update(variables, state)
        variables, state, value = compiled(variables, state)
        assert tree.equal((variables, state, value), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averaging.ema(1.5), "lie in"),
        (lambda: averaging.lookahead(-0.1), "lie in"),
        (lambda: averaging.ema(float("nan")), "lie in"),
        (lambda: averaging.ema(0.9, every=0), "every=1 or more"),
        (lambda: averaging.lookahead(0.5, every=2.5), "every=1 or more"),
        (lambda: averaging.swa(0), "start=1 or a later step"),
        (lambda: averaging.swa(True), "start=1 or a later step"),
        (lambda: averaging.swa(3, every=0), "every=1 or more"),
        (lambda: averaging.mean([]), "at least one tree"),
        (lambda: averaging.greedy_soup([], lambda soup: 0.0), "at least one tree"),
    ],
)
def test_misuse_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Models that were trained separately --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mean_is_that_of_each_leaf(dtype: torch.dtype) -> None:
    trees = [some_variables(seed, dtype) for seed in range(3)]
    found = averaging.mean(trees)
    for name, leaf in tree.named_leaves(found).items():
        each = torch.stack([tree.named_leaves(t)[name] for t in trees])
        expected = each.double().mean(0).to(leaf.dtype) if leaf.is_floating_point() else each[0]
        torch.testing.assert_close(leaf, expected)
        assert leaf.dtype == tree.named_leaves(trees[0])[name].dtype
    assert tree.equal(averaging.mean(trees[:1]), trees[0])


def test_a_greedy_soup_keeps_what_does_not_lower_its_score() -> None:
    trees = [torch.tensor(w) for w in (3.0, 9.0, 5.0, 4.0)]
    tried: list[float] = []

    def score(soup: Tensor) -> float:
        tried.append(soup.item())
        return -abs(soup.item() - 4.0)

    soup, attempts = averaging.greedy_soup(trees, score)
    assert tried == [3, 6, 4, 4]
    assert [(a.index, a.score, a.kept) for a in attempts] == [
        (0, -1, True),
        (1, -2, False),
        (2, 0, True),
        (3, 0, True),
    ]
    assert soup == 4


@pytest.mark.parametrize("momentum", [0.1, 0.4, 1.0])
def test_statistics_are_those_of_update_bn(momentum: float) -> None:
    """PyTorch's, of the same module and the same batches."""

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4, momentum=momentum),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4, 5, 3),
            torch.nn.BatchNorm2d(5, momentum=momentum),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(5, 10),
        )

    model = models.from_module(net)
    variables = model.init(random.key(1))
    keys = random.split(random.key(2), 3)
    batches = [3 + 2 * random.normal(key, (8, 3, 32, 32)) for key in keys]
    calls = []

    def update(buffers: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        calls.append(images)
        return model.apply(Variables(variables.params, buffers), images, key=keys[0], train=True)[1]

    found = averaging.estimate_statistics(update, variables.buffers, batches)
    assert len(calls) == 5, "the first batch three times"
    module = net()
    module.load_state_dict({**variables.params, **variables.buffers}, strict=False)
    torch.optim.swa_utils.update_bn(batches, module)
    expected = {n: b for n, b in module.named_buffers() if n in found}
    assert {name.rpartition(".")[2] for name in expected} >= set(averaging.STATISTICS)
    for name in expected:
        if name.endswith(averaging.STATISTICS):
            torch.testing.assert_close(found[name], expected[name], rtol=2e-5, atol=1e-5)


def test_without_statistics_no_batch_is_used() -> None:
    def update(buffers: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        raise AssertionError("a forward pass")

    buffers = {"whiten.weight": torch.ones(2)}
    assert averaging.estimate_statistics(update, buffers, [torch.ones(1)]) is buffers


def test_statistics_that_do_not_move_stay() -> None:
    buffers = {"norm.running_mean": torch.tensor([3.0]), "scale": torch.tensor([5.0])}
    found = averaging.estimate_statistics(lambda old, batch: old, buffers, [0, 1])
    assert tree.equal(found, buffers)
