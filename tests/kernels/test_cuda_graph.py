"""CUDA graphs of a step: which graph serves which call. Values are tested where there is CUDA."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

import fcifar
from fcifar import models, optim, random, tree
from fcifar.kernels import cuda_graph
from fcifar.kernels.cuda_graph import MOST_STATES, replayed
from fcifar.step import Batch, init_train_state, make_train_step
from fcifar.step_transforms import compile_step


class Simulated:
    """A graph on the CPU: it runs a function again, on the memory that it was captured for."""

    def __init__(self, function: Any, first: Any, fed: Any, results: Any) -> None:
        self.function, self.first, self.fed, self.results = function, first, fed, results
        self.leaves = [leaf.data_ptr() for leaf in tree.leaves(first)]

    def replay(self) -> None:
        tree.map(lambda old, new: old.copy_(new), self.results, self.function(self.first, self.fed))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Simulated]:
    """Take CPU tensors for CUDA tensors; return the graphs in the order of their capture."""
    graphs: list[Simulated] = []

    def capture(function, first, second, device, captures):
        if getattr(function, "fails", False):
            raise cuda_graph._CaptureError("operation not permitted when stream is capturing")
        # A graph does not keep what it is bound to.
        alias = tree.map(lambda leaf: leaf.detach(), first)
        fed = tree.map(torch.clone, second)
        results = function(tree.map(torch.clone, first), fed)
        graphs.append(Simulated(function, alias, fed, results))
        return cuda_graph._Captured(graphs[-1], tree.leaves(fed), results)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_graph, "_capture", capture)
    monkeypatch.setattr(cuda_graph, "_is_cuda", lambda leaf: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return graphs


def add(state: Any, batch: Tensor) -> Tensor:
    state["sum"].add_(batch.sum())
    return 2 * state["sum"]


def state(value: float = 0.0) -> dict[str, Tensor]:
    return {"sum": torch.tensor(value)}


def test_a_state_is_captured_once_and_replayed(captured: list[Simulated]) -> None:
    step, own = replayed(add), state()
    results = [step(own, torch.tensor([x])) for x in (1.0, 2.0, 4.0)]
    assert len(captured) == 1
    assert own["sum"] == 7
    assert torch.stack(results).tolist() == [2, 6, 14]  # each in memory of its own


def test_preparing_changes_nothing(captured: list[Simulated]) -> None:
    step, own = replayed(add), state()
    step.prepare(own, torch.ones(3))  # type: ignore[attr-defined]
    assert len(captured) == 1
    assert own["sum"] == 0
    assert step(own, torch.ones(3)) == 6
    assert len(captured) == 1


def test_two_states_take_turns_without_touching_each_other(captured: list[Simulated]) -> None:
    step, a, b = replayed(add), state(), state(100.0)
    for x in (1.0, 2.0):
        step(a, torch.tensor([x]))
        step(b, torch.tensor([10 * x]))
    assert (a["sum"], b["sum"]) == (3, 130)
    assert len(captured) == 2


@pytest.mark.parametrize(
    "other",
    [torch.ones(2), torch.ones(1, dtype=torch.float64), torch.ones(2, 2).T, (torch.ones(1),)],
    ids=["shape", "dtype", "layout", "structure"],
)
def test_another_kind_of_batch_has_its_own_graph(captured: list[Simulated], other: Any) -> None:
    step = replayed(lambda state, batch: add(state, tree.leaves(batch)[0]))
    own = state()
    usual = torch.ones(2, 2) if other[0].ndim else torch.ones(1)
    for batch in (usual, other, usual):
        step(own, batch)
    assert len(captured) == 2
    assert own["sum"] == 2 * usual.sum() + tree.leaves(other)[0].sum()


def test_a_tensor_replaced_in_a_dict_is_seen(captured: list[Simulated]) -> None:
    step, own = replayed(add), state()
    step(own, torch.ones(1))
    own["sum"] = torch.tensor(50.0)
    step(own, torch.ones(1))
    assert own["sum"] == 51
    assert len(captured) == 2


def test_switches_of_torch_have_their_own_graphs(captured: list[Simulated]) -> None:
    step, own = replayed(add), state()
    before = torch.backends.cudnn.deterministic
    try:
        for value in (False, True, False):
            torch.backends.cudnn.deterministic = value
            step(own, torch.ones(1))
        with torch.no_grad():
            step(own, torch.ones(1))
    finally:
        torch.backends.cudnn.deterministic = before
    assert len(captured) == 3
    assert own["sum"] == 4


def test_states_that_ended_make_room(captured: list[Simulated]) -> None:
    notes: list[str] = []
    step = replayed(add, notes.append)
    for _ in range(2 * MOST_STATES):
        step(state(), torch.ones(1))
    assert len(captured) == 2 * MOST_STATES
    assert not notes


def test_too_many_states_are_stepped_without_graphs(captured: list[Simulated]) -> None:
    notes: list[str] = []
    step, states = replayed(add, notes.append), [state(float(i)) for i in range(MOST_STATES + 3)]
    for _ in range(2):
        for own in states:
            step(own, torch.ones(1))
    assert [own["sum"].item() for own in states] == [i + 2 for i in range(len(states))]
    assert len(captured) == MOST_STATES
    assert len(notes) == 1
    assert f"more than {MOST_STATES} states" in notes[0]


def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(captured: list[Simulated]) -> None:
    def waits(state: Any, batch: Tensor) -> Tensor:
        return add(state, batch)

    waits.fails = True  # type: ignore[attr-defined]
    notes: list[str] = []
    step, own = replayed(waits, notes.append), state()
    assert [step(own, torch.ones(1)).item() for _ in range(3)] == [2, 4, 6]
    assert not captured
    assert notes == [
        "the step cannot be captured as a CUDA graph (operation not permitted when stream is "
        "capturing); its kernels are launched one by one"
    ]


def test_transformations_go_through_the_function(captured: list[Simulated]) -> None:
    step = replayed(lambda state, batch: state * batch)
    mapped = torch.func.vmap(step)(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert mapped.tolist() == [3, 8]
    assert not captured


def test_on_the_cpu_the_function_is_called() -> None:
    calls = []
    step, own = replayed(lambda s, b: calls.append(1) or add(s, b)), state()
    assert step(own, torch.ones(2)) == 4
    assert len(calls) == 1


@pytest.mark.cuda
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_graph_has_the_bits_of_its_kernels(deterministic: bool, make_batch: Any) -> None:
    model, optimizer = models.lenet(), optim.sgd(1e-2, momentum=0.9)
    step = make_train_step(model, optimizer)
    batches = [
        Batch(*(x.cuda() for x in make_batch(size, seed=i)))
        for i, size in enumerate((8, 8, 3, 8, 3))
    ]
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(deterministic)
        graphed = compile_step(step)
        plain = compile_step(step, donate=False)
        first = init_train_state(model, optimizer, key=random.key(0, device="cuda"))
        second = init_train_state(model, optimizer, key=random.key(1, device="cuda"))
        ours = [tree.map(torch.clone, s) for s in (first, second)]
        theirs = [first, second]
        for batch in batches:
            for i in range(2):
                ours[i], a = graphed(ours[i], batch)
                theirs[i], b = plain(theirs[i], batch)
                assert tree.equal(a, b)
        assert all(tree.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.cuda
def test_a_function_that_waits_is_not_captured_and_leaves_its_state() -> None:
    notes: list[str] = []

    def waits(state: Tensor, batch: Tensor) -> Tensor:
        state.add_(batch.sum().item())
        return state.clone()

    step, own = replayed(waits, notes.append), torch.zeros((), device="cuda")
    for i in range(3):
        assert step(own, torch.ones(2, device="cuda")) == 2 * (i + 1)
    assert len(notes) == 1


@pytest.mark.cuda
def test_memory_does_not_grow_with_states() -> None:
    step = fcifar.compile_step(lambda w, x: (w + x.mean(), w * 2))
    sizes = []
    for _ in range(6):
        own = torch.zeros(1_000_000, device="cuda")
        step(own, torch.ones(4, device="cuda"))
        del own
        gc.collect()
        sizes.append(torch.cuda.memory_reserved())
    assert sizes[-1] == sizes[2]
