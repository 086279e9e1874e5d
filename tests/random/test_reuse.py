"""Which uses of keys are an error, what the error says, and that the package has none."""

import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import augment, data, models, optim, random, recipes
from fcifar.data import shapes10
from fcifar.random import KeyReuseError, allow_reuse, clone, no_reuse
from fcifar.step import Batch, init_train_state, make_train_step
from fcifar.step_transforms import map_replicas, stack
from fcifar.train.runtime import Runtime
from tests.helpers.small import chosen_models, make_model
from tests.helpers.training import train

KEY = random.key(0)
KEYS = random.split(random.key(1), 6)


def rows(first: int, count: int, tail: tuple[int, ...] = (3,)) -> Tensor:
    return random.normal(random.from_row(KEY, first), (count, *tail))


def second(key: Tensor = KEY) -> Tensor:
    return random.split(key)[1]


def allowed_twice() -> None:
    random.uniform(KEY)
    with allow_reuse():
        REUSED["the same draw"]()


# What is an error, and what is not ----------------------------------------------------------------

REUSED: dict[str, Callable[[], Any]] = {
    "the same draw": lambda: [random.uniform(KEY, (3,)) for _ in range(2)],
    "another distribution and shape": lambda: (random.bits(KEY), random.normal(KEY, (2, 3))),
    "equal seeds": lambda: [random.uniform(random.key(seed)) for seed in (0, 0)],
    "a copy": lambda: (random.uniform(KEY), random.uniform(KEY.clone())),
    "split, then drawn": lambda: (random.split(KEY), random.bernoulli(KEY)),
    "drawn, then folded in": lambda: (random.uniform(KEY, (3,)), random.fold_in(KEY, 9)),
    "drawn, then a key for each row": lambda: (random.uniform(KEY), random.row_keys(KEY, 3)),
    "the same child": lambda: (random.uniform(second()), random.uniform(second())),
    "a child, split and folded": lambda: (
        random.uniform(second()),
        random.uniform(random.fold_in(KEY, 1)),
    ),
    "split inside of randint": lambda: (random.randint(KEY, (2,), 0, 4), random.uniform(second())),
    "a permutation twice": lambda: [random.permutation(KEY, 5) for _ in range(2)],
    "overlapping rows": lambda: (rows(0, 3), rows(2, 3)),
    "rows, and a draw without rows": lambda: (rows(4, 2), random.uniform(KEY, (20,))),
    "rows of another width": lambda: (rows(4, 1, ()), rows(0, 2, (3,))),
    "shape () of the same row": lambda: [random.uniform(random.from_row(KEY, 2)) for _ in "ab"],
    "equal keys under vmap": lambda: torch.vmap(random.uniform)(KEY.expand(3, 2)),
    "equal keys under two vmaps": lambda: torch.vmap(torch.vmap(random.uniform))(
        torch.stack([KEYS[:3], KEYS[2:5]])
    ),
    "vmap, then one of its keys": lambda: (
        torch.vmap(random.uniform)(KEYS),
        random.uniform(KEYS[4]),
    ),
    "a mapped axis that is not the first": lambda: (
        torch.vmap(random.uniform, in_dims=1)(KEYS.T),
        random.uniform(KEYS[4]),
    ),
    "under grad and vmap": lambda: torch.func.grad(
        lambda x: (x * torch.vmap(lambda k: random.uniform(k) + random.uniform(k))(KEYS)).sum()
    )(torch.tensor(1.0)),
    "under jvp": lambda: torch.func.jvp(
        lambda x: x * random.uniform(KEY) * random.normal(KEY), (torch.ones(()),), (torch.ones(()),)
    ),
}
FINE: dict[str, Callable[[], Any]] = {
    "once": lambda: random.uniform(KEY, (3,)),
    "children": lambda: [random.uniform(k) for k in random.split(KEY, 4)],
    "split twice, each child once": lambda: [random.uniform(random.split(KEY)[i]) for i in (0, 1)],
    "a child of a child": lambda: (random.uniform(second()), random.split(random.split(KEY)[0])),
    "folded with different numbers": lambda: [
        random.normal(random.fold_in(KEY, i)) for i in range(3)
    ],
    "folded with the same number, not drawn": lambda: [random.fold_in(KEY, 1) for _ in range(2)],
    "rows of one draw": lambda: [rows(first, 2) for first in (0, 2, 4)],
    "rows that skip": lambda: [
        random.uniform(random.skip_rows(random.from_row(KEY, 2), n), (2,)) for n in (0, 2)
    ],
    "shape () of several rows": lambda: [random.uniform(random.from_row(KEY, i)) for i in (0, 4)],
    "a key for each row": lambda: torch.vmap(random.uniform)(random.row_keys(KEY, 5)),
    "two vmaps": lambda: torch.vmap(torch.vmap(random.uniform), in_dims=1)(KEYS.reshape(2, 3, 2)),
    "folded under vmap": lambda: torch.vmap(
        lambda i: random.uniform(random.fold_in(KEY, i)), in_dims=0
    )(torch.arange(4)),
    "no elements": lambda: [random.uniform(KEY, (0,)) for _ in range(2)],
    "a clone": lambda: (random.uniform(KEY), random.normal(clone(KEY), (2,))),
    "children of a clone": lambda: (random.uniform(second()), random.uniform(second(clone(KEY)))),
    "a clone under vmap": lambda: torch.vmap(
        lambda k: random.uniform(k) + random.uniform(clone(k))
    )(KEYS),
    "allowed": lambda: allowed_twice(),
    "keys without values": lambda: [random.uniform(KEY.to("meta"), (3,)) for _ in range(2)],
    "from truncated_normal": lambda: random.truncated_normal(KEY, 0.0, 9.0, (3,)),
}


@pytest.mark.parametrize("use", REUSED.values(), ids=REUSED)
def test_a_key_used_twice_is_found(use: Callable[[], Any]) -> None:
    with pytest.raises(KeyReuseError), no_reuse():
        use()
    use()  # nothing outside


@pytest.mark.parametrize("use", FINE.values(), ids=FINE)
def test_other_uses_are_fine(use: Callable[[], Any]) -> None:
    with no_reuse():
        use()


def test_a_clone_forgets_its_own_key_only() -> None:
    with no_reuse():
        random.uniform(KEYS[0])
        random.uniform(clone(KEYS[1]))
        with pytest.raises(KeyReuseError):
            random.uniform(KEYS[0])


def test_a_key_that_vmap_does_not_map_is_one_draw() -> None:
    with no_reuse():
        torch.vmap(lambda x: x + random.uniform(KEY))(torch.zeros(3))
        with pytest.raises(KeyReuseError):
            random.uniform(KEY)


# What it says -------------------------------------------------------------------------------------


def here() -> str:
    """The place of the line above the call."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return rf"tests/random/test_reuse.py:{frame.f_back.f_lineno - 1}"


def message_of(use: Callable[[], Any]) -> str:
    with pytest.raises(KeyReuseError) as found, no_reuse():
        use()
    return str(found.value)


def test_both_places_are_named() -> None:
    places = []

    def use() -> None:
        random.uniform(KEY)
        places.append(here())
        random.normal(KEY, (3,))

    message = message_of(use)
    line = int(places[0].rpartition(":")[2])
    pattern = (
        rf"key \[0, 0\] is drawn from twice, first at \S*test_reuse.py:{line} and again at "
        rf"\S*test_reuse.py:{line + 2}: the draws are not independent; split it, and use each key "
        r"once: a, b = fcifar.random.split\(key\)"
    )
    assert re.fullmatch(pattern, message), message


def test_in_the_package_the_place_outside_is_named_too() -> None:
    flip = augment.random_flip()
    images = torch.zeros(2, 3, 4, 4)
    message = message_of(lambda: [flip(KEY, images) for _ in range(2)])
    assert re.search(
        r"at fcifar/augment/\S+\.py:\d+ \(called from \S*test_reuse.py:\d+\) and again there:",
        message,
    ), message


def test_a_derived_key_is_named_with_its_origin() -> None:
    child = second(second())
    message = message_of(lambda: [random.uniform(second(second())) for _ in range(2)])
    assert message.startswith(f"key {child.tolist()}, derived from [0, 0], is drawn from twice")
    keys = random.split(KEY, 3)
    mapped = torch.vmap(lambda k: random.uniform(second(k)))

    def use() -> None:
        mapped(random.split(KEY, 3))
        random.uniform(second(keys[2]))

    assert f"key {second(keys[2]).tolist()}, derived from [0, 0]," in message_of(use)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (
            REUSED["split, then drawn"],
            r"split or folded at \S+, and drawn from at \S+: the draw is",
        ),
        (REUSED["drawn, then folded in"], r"drawn from at \S+, and split or folded at \S+: the"),
        (REUSED["equal keys under vmap"], r"two examples under vmap at \S+.*row_keys\(key, count"),
    ],
)
def test_other_messages(use: Callable[[], Any], says: str) -> None:
    assert re.search(says, message_of(use)), message_of(use)


# The context --------------------------------------------------------------------------------------


def test_contexts_end_also_with_an_error_and_an_inner_one_is_a_part() -> None:
    with no_reuse():
        random.uniform(KEY)
    with no_reuse():
        random.uniform(KEY)
        with no_reuse(), pytest.raises(KeyReuseError):
            random.uniform(KEY)
        with pytest.raises(KeyReuseError), no_reuse():
            random.uniform(KEY)
        random.uniform(KEYS[0])
    with pytest.raises(ZeroDivisionError), no_reuse():
        _ = 1 / 0
    REUSED["the same draw"]()


def test_a_failed_draw_is_no_use() -> None:
    with no_reuse():
        with pytest.raises(ValueError, match="minval < maxval"):
            random.uniform(KEY, (3,), 1.0, 0.0)
        random.uniform(KEY, (3,))


def test_other_threads_are_not_seen_and_have_contexts_of_their_own() -> None:
    outcome: list[Any] = []

    def other() -> None:
        REUSED["the same draw"]()
        with no_reuse():
            try:
                REUSED["the same draw"]()
            except KeyReuseError as error:
                outcome.append(error)

    with no_reuse():
        random.uniform(KEY)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(KeyReuseError):
            random.uniform(KEY)
    assert len(outcome) == 1


def test_a_compiled_function_is_one_graph_with_and_without_it() -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def draw(key: Tensor) -> Tensor:
        return random.uniform(key, (3,)) + random.uniform(clone(key), (3,))

    compiled = torch.compile(draw, backend=counting, fullgraph=True)
    with no_reuse():
        first = compiled(KEY)
    assert torch.equal(compiled(KEY), first)
    assert torch.equal(draw(KEY), first)
    assert len(graphs) == 1


def test_draws_are_the_same_inside() -> None:
    def draws() -> list[Tensor]:
        keys = random.split(KEY, 4)
        return [
            random.normal(keys[0], (5,)),
            random.permutation(keys[1], 9),
            torch.vmap(random.uniform)(random.row_keys(random.from_row(keys[2], 3), 4)),
            random.randint(random.skip_rows(keys[3], 2), (3,), 0, 99),
        ]

    with no_reuse():
        inside = draws()
    assert all(torch.equal(a, b) for a, b in zip(inside, draws(), strict=True))


# The package: steps are in tests/test_contracts.py ------------------------------------------------


@pytest.mark.parametrize("name", chosen_models())
def test_models_use_each_key_once(name: str) -> None:
    images = torch.zeros(2, 3, 32, 32)
    with no_reuse():
        model = make_model(name)
        variables = model.init(KEYS[0])
        model.apply(variables, images, key=KEYS[1], train=True)


def test_modules_of_others_use_each_key_once() -> None:
    def net() -> torch.nn.Module:
        return torch.nn.Sequential(
            *(torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.5), torch.nn.Flatten()),
            *(torch.nn.Linear(3600, 10), torch.nn.Dropout(0.5)),
        )

    with no_reuse():
        model = models.from_module(net)
        variables = model.init(KEYS[0])
        model.apply(variables, torch.zeros(2, 3, 32, 32), key=KEYS[1], train=True)


@pytest.mark.parametrize("name", recipes.AUGMENTS)
def test_augmentations_use_each_key_once(name: str, make_batch) -> None:
    strength = {"random_rotation": [9], "color_jitter": [0.3]}.get(name, [])
    strength = [4] if "cr" in name or "cutout" in name else strength
    images, operation = make_batch(4).images, recipes.AUGMENTS[name](*strength)
    with no_reuse():
        operation(KEYS[0], images)
        torch.vmap(lambda k, x: operation(k, x[None])[0])(random.row_keys(KEYS[1], 4), images)


def test_data_uses_each_key_once() -> None:
    with no_reuse():
        shapes10.generate(KEYS[0], train_size=60, test_size=30)
        data.split.holdout(KEYS[1], torch.arange(40) % 10, 0.2, stratify=True)


def test_replicas_use_each_key_once(make_batch) -> None:
    model, optimizer, batch = make_model("conv3"), optim.sgd(0.1), make_batch(4)
    with no_reuse():
        keys = random.split(KEYS[0], 3)
        states = stack([init_train_state(model, optimizer, key=key) for key in keys])
        step = map_replicas(make_train_step(model, optimizer, augment=augment.random_flip()))
        batches = stack([batch] * 3)
        states, _ = step(states, Batch(*batches))
        step(states, Batch(*batches))


def test_a_mistake_in_a_model_is_found_in_a_step(make_batch) -> None:
    def apply(variables: Any, images: Tensor, *, key: Tensor, train: bool) -> Any:
        noise = random.normal(key, (len(images), 10)) + random.uniform(key, (len(images), 10))
        return images.flatten(1)[:, :10] * variables.params["w"] + noise, {}

    model = models.Model(init=lambda key: models.Variables({"w": torch.ones(10)}, {}), apply=apply)
    optimizer = optim.sgd(0.1)
    state, step = init_train_state(model, optimizer, key=KEY), make_train_step(model, optimizer)
    with pytest.raises(KeyReuseError, match="test_reuse"), no_reuse():
        step(state, make_batch(4))


def test_a_whole_run_uses_each_key_once(tmp_path: Path, make_batch) -> None:
    dataset = data.make_dataset(
        "tiny", data.Split(*make_batch(40)), data.Split(*make_batch(6, seed=1)), "abcdefghij", "-"
    )
    changes = {"batch_size": 8, "epochs": 2, "valid_fraction": 0.2, "alternating_flip": True}
    changes |= {"ema_decay": 0.9, "model": "resnet18", "model_options": {"width": 4}}
    recipe = recipes.get("conv3-aug").replace(**changes)
    with no_reuse():
        train(tmp_path / "run", recipe, Runtime(device="cpu", threads=1), dataset)
