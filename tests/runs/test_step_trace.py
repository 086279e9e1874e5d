"""Operations of a step are all recorded, with their lines, and recording changes no bit."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import recipes, step_transforms, tree
from fcifar.data import Dataset
from fcifar.train import programs, step_trace
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import make_training
from fcifar.train.step_trace import COMPILED, record
from tests.helpers.small import chosen_recipes, make_recipe
from tests.helpers.training import SEED


def objective(w: Tensor, x: Tensor) -> Tensor:
    y = F.conv2d(x, w)
    z = F.relu(y)
    return z.square().mean()


def line(text: str) -> str:
    """The file and the number of the line of ``objective`` with a text."""
    lines, first = inspect.getsourcelines(objective)
    (number,) = [i for i, code in enumerate(lines, first) if text in code]
    return f"test_step_trace.py:{number}"


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_the_operations_of_a_gradient_and_their_lines() -> None:
    w, x = drawn(2, 3, 3, 3), drawn(4, 3, 6, 6)
    trace, grads = record(torch.func.grad(objective), w, x)
    found = [(o.name, o.backward) for o in trace.operations]
    assert found[:4] == [
        ("aten.convolution.default", False),
        ("aten.relu.default", False),
        ("aten.pow.Tensor_Scalar", False),
        ("aten.mean.default", False),
    ]
    assert found[-2:] == [
        ("aten.threshold_backward.default", True),
        ("aten.convolution_backward.default", True),
    ]
    lines = {o.name: o.line for o in trace.operations}
    assert lines["aten.convolution.default"].endswith(line("conv2d"))
    assert lines["aten.relu.default"].endswith(line("relu"))
    # The backward pass has the lines of the forward pass.
    assert lines["aten.convolution_backward.default"].endswith(line("conv2d"))
    assert lines["aten.threshold_backward.default"].endswith(line("relu"))
    assert torch.equal(grads, torch.func.grad(objective)(w, x))


def test_operations_beneath_vmap_are_those_of_the_whole_batch() -> None:
    each = torch.func.vmap(torch.func.grad(objective), (None, 0))
    w, x = drawn(2, 3, 3, 3), drawn(4, 1, 3, 6, 6)
    trace, again = (record(each, w, x)[0] for _ in range(2))
    (convolution,) = [o for o in trace.operations if o.name == "aten.convolution.default"]
    assert 4 in convolution.outputs[0].shape
    assert any(o.name == "aten.convolution_backward.default" for o in trace.operations)
    # Torch gives the backward pass memory that is not initialised; its bits count for nothing.
    assert again == trace


def test_views_and_uninitialised_memory_are_not_operations() -> None:
    def function(x: Tensor) -> Tensor:
        out = torch.empty(2, 3)
        torch.add(x.t(), 1, out=out)
        return out.view(6)[1:]

    trace, result = record(function, drawn(3, 2))
    assert [o.name for o in trace.operations] == ["aten.add.out"]
    assert len(trace.operations[0].inputs) == 1, "not the memory that is written"
    assert result.shape == (5,)


def test_what_is_overwritten_is_an_output() -> None:
    x, y = drawn(3), drawn(3)
    trace, _ = record(lambda: torch._foreach_add_([x, y], 1.0))
    (operation,) = trace.operations
    assert [o.shape for o in operation.outputs] == [(3,), (3,)]
    assert operation.outputs[0].hash == record(lambda: x + 0)[0].operations[0].outputs[0].hash


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("size", [1, 7, 2**20 + 5])
def test_a_hash_sees_each_bit_and_no_stride(dtype: torch.dtype, size: int) -> None:
    def fingerprint(x: Tensor) -> tuple[str, str]:
        output = record(lambda: x.clone())[0].operations[0].outputs[0]
        return output.hash, output.unordered

    x = (torch.arange(size) * 7 % 251).to(dtype)
    changed = x.clone()
    changed.view(torch.uint8).view(-1)[-1] ^= 1
    assert fingerprint(changed)[0] != fingerprint(x)[0]
    assert fingerprint(changed)[1] != fingerprint(x)[1]
    if size > 1 and dtype != torch.bool:
        assert fingerprint(x.flip(0))[0] != fingerprint(x)[0]
        assert fingerprint(x.flip(0))[1] == fingerprint(x)[1], "in any order"
        strided = torch.stack([x, x], 1)[:, 0]
        assert fingerprint(strided) == fingerprint(x)


def test_values_are_kept_as_they_were() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        return y.mul_(2)

    trace, _ = record(function, torch.ones(2), keep=[0])
    assert trace.kept[0][0].tolist() == [2.0, 2.0]


SAMPLE = ("blitz", "dropout-adam", "speed90", "vit-tiny")  # the others are for --long
OTHERS = [name for name in recipes.RECIPES if name not in SAMPLE]


@pytest.mark.parametrize("name", chosen_recipes(*OTHERS))
def test_recording_changes_no_bit_of_a_step(name: str, runtime: Runtime, dataset: Dataset) -> None:
    """Of the first step and the next, of every recipe."""
    recipe = make_recipe(name).replace(batch_size=7, epochs=2)
    with activate(runtime):
        training = make_training(make_config(recipe, dataset, seed=SEED), dataset)
        state, step = training.init(), training.stages[0]
        for _, inputs in zip(range(2), training.inputs(0), strict=False):
            expected, _ = step(state, inputs)
            trace, (result, _) = record(step, state, inputs)
            assert tree.equal(result, expected)
            state = expected
        assert record(step, state, inputs)[0] == record(step, state, inputs)[0]
    names = {o.name for o in trace.operations}
    assert names & {"aten.convolution_backward.default", "aten.mm.default"}
    assert all(o.line for o in trace.operations)


def test_the_kernels_of_a_compiled_function() -> None:
    """The fused loop, the call of a library and what is written in place."""

    def function(first: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.mm(first, x).relu()
        first.copy_(y)
        return (y.sum(),)

    a, b = drawn(4, 4), drawn(4, 4).t()
    with activate(Runtime(threads=1)):
        observed = programs.observed(function, a, b)
        first = a.clone()
        trace = observed(first, b, [0, 1])
    assert trace.kind == COMPILED
    product, loop = trace.operations
    assert product.name == "mm_out"
    assert loop.name.startswith("cpp_fused")
    assert torch.equal(trace.kept[0][0], a @ b)
    assert torch.equal(first, (a @ b).relu())
    hashes = [o.hash for o in loop.outputs]
    assert record(lambda: first.clone())[0].operations[0].outputs[0].hash in hashes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blitz", "speed90", "conv3-aug"])
def test_recording_changes_no_bit_of_a_compiled_step(
    name: str, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = make_recipe(name).replace(batch_size=7, epochs=2)
    config = make_config(recipe, dataset, seed=SEED)
    with activate(runtime):
        training = make_training(config.replace(compile=True), dataset)
        plain = make_training(config, dataset).stages[0]
        start, inputs = training.init(), next(training.inputs(0))

        def copy() -> step_transforms.LoopState:
            return tree.map(lambda x: x.clone(), start)

        expected, _ = training.stages[0](copy(), inputs)
        observed = programs.observed(
            lambda state, inputs: step_transforms.overwrite(state, plain(state, inputs)[0]),
            *(start, inputs),
        )
        state = copy()
        trace = observed(state, inputs)
        assert tree.equal(state, expected)
        assert observed(copy(), inputs) == trace
    assert len(trace.operations) > 10


def test_on_another_device_than_the_cpu_a_compiled_step_is_refused() -> None:
    from fcifar.errors import UsageError

    with pytest.raises(UsageError, match="recorded on a CPU"):
        programs.observed(lambda a, b: (a + b,), *torch.ones(2, 1, device="meta"))


def test_a_trace_is_made_of_plain_values() -> None:
    trace, _ = record(lambda x: x + 1, torch.ones(2))
    assert isinstance(trace.operations[0].outputs[0], step_trace.Output)
    assert trace.operations[0].outputs[0].mean == 2.0
