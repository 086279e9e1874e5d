"""Programs compiled ahead of time do what the function does, without the compiler."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.testing import assert_close

from fcifar import kernels, random, tree
from fcifar.kernels import aot
from fcifar.kernels.threefry import threefry2x32
from fcifar.random import threefry

pytestmark = pytest.mark.skipif(
    aot.why_not() is not None, reason=f"no programs here: {aot.why_not()}"
)
needs_kernels = pytest.mark.skipif(
    kernels.why_not() is not None, reason=f"no kernels here: {kernels.why_not()}"
)


def build(
    folder: Path, function: Callable[..., Any], *arguments: Tensor
) -> tuple[aot.Program, aot.Graph]:
    """The program of a function, and what was recorded."""
    copies = [x.clone() for x in arguments]
    graph = aot.trace(function, copies)
    aot.compile(graph, copies, folder)
    assert os.listdir(folder) == [aot.LIBRARY]
    return aot.Program(f"{folder}/{aot.LIBRARY}", graph.outputs), graph


def test_a_program_overwrites_returns_and_reads_constants(tmp_path: Path) -> None:
    """An argument in place, an argument as it is, and a draw; constants are values of the graph.

    An operation that fails raises with its text, and the program can be called again.
    """
    scale = torch.tensor([1.0, 2.0, 4.0])

    def step(state: Tensor, key: Tensor, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        noise = random.normal(key, (2, 3))
        state.copy_(state + x[rows] * scale)
        return state * 2, random.fold_in(key, 1), noise

    state, key, x = torch.ones(2, 3), random.key(7), torch.arange(15.0).reshape(5, 3)
    rows = torch.tensor([1, 4])
    program, graph = build(tmp_path, step, state, key, x, rows)
    assert [value.tolist() for value in graph.constants] == [scale.tolist()]
    wanted, found = state.clone(), state.clone()
    program.keep([*graph.constants, found, key], 2)
    with pytest.raises(RuntimeError, match="index out of bounds"):
        program([x, torch.tensor([1, 9])])
    found.copy_(wanted)  # the call that failed may have written to it
    for _ in range(3):
        results = step(wanted, key, x, rows)
        for a, b in zip(results, program([x, rows]), strict=True):
            assert_close(a, b)
        assert torch.equal(wanted, found)
    assert torch.equal(program([x, rows])[1], random.fold_in(key, 1))


def test_a_graph_is_known_by_its_operations_and_its_constants() -> None:
    def times(factor: float) -> Callable[[Tensor], tuple[Tensor]]:
        value = torch.tensor([factor, 1.0])
        return lambda x: (x * value,)

    digests = [aot.trace(times(v), [torch.ones(2)]).digest for v in (1.0, 1.0, 2.0)]
    assert digests[0] == digests[1] != digests[2]
    other = aot.trace(lambda x: (x + torch.tensor([1.0, 1.0]),), [torch.ones(2)])
    assert other.digest != digests[0]


def test_what_depends_on_the_values_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"data.dependent|value out of a tracing tensor"):
        aot.trace(lambda x: (x + 1 if x.sum() > 0 else x,), [torch.ones(2)])


def test_an_operation_without_a_c_function_is_refused(tmp_path: Path) -> None:
    @torch.library.custom_op("fcifar_tests::python_only", mutates_args=())
    def python_only(x: Tensor) -> Tensor:
        return x + 1

    python_only.register_fake(torch.empty_like)
    with pytest.raises(aot.UnsupportedError, match="an operation that torch runs in Python"):
        build(tmp_path, lambda x: (python_only(x),), torch.ones(3))


@needs_kernels
def test_the_kernels_are_part_of_a_program(tmp_path: Path) -> None:
    """Two shapes of them, one of which has a gradient by its input and one for each image."""

    def logits(x: Tensor, *weights: Tensor) -> Tensor:
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            x = F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2).relu()
        return x.flatten(1)

    def gradients(x: Tensor, *weights: Tensor) -> list[Tensor]:
        by = tuple(range(len(weights)))
        of_all = grad(lambda *w: logits(x, *w).pow(2).sum(), by)(*weights)
        of_each = vmap(
            lambda image: grad(lambda *w: logits(image[None], *w).pow(2).sum(), by)(*weights)
        )(x)
        return [*of_all, *of_each]

    shapes = [(4, 3, 8, 8), (5, 3, 3, 3), (5,), (6, 5, 3, 3), (6,)]
    leaves = [random.normal(random.fold_in(random.key(0), i), s) for i, s in enumerate(shapes)]
    program, graph = build(tmp_path, gradients, *leaves)
    assert b"no kernel was compiled" in (tmp_path / aot.LIBRARY).read_bytes()  # of shims.h
    program.keep([*graph.constants, *leaves], 0)
    for a, b in zip(gradients(*leaves), program([]), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


# The cipher --------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(), (1,), (3,), (2, 1), (2, 3), (4, 1, 1), (4, 2, 3), (0, 3), (70,)])


@needs_kernels
@given(st.tuples(SHAPES, SHAPES, SHAPES, SHAPES), st.integers(0, 2**31))
def test_the_operation_is_the_cipher(shapes: tuple[tuple[int, ...], ...], seed: int) -> None:
    words = [
        random.bits(random.fold_in(random.key(seed), i), shape).to(torch.int32)
        for i, shape in enumerate(shapes)
    ]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return
    for a, b in zip(threefry.threefry2x32(*words), threefry2x32(*words), strict=True):
        assert torch.equal(a, b)


@needs_kernels
def test_the_operation_under_vmap_and_in_a_program(tmp_path: Path) -> None:
    """Over keys, over counters, over both, and twice; the draws of a program are bit-equal."""
    keys = random.split(random.key(3), 4)

    def draws(keys: Tensor) -> list[Tensor]:
        of_each = vmap(lambda key: random.bits(key, (3, 5)))(keys)
        twice = vmap(lambda key: vmap(lambda i: random.fold_in(key, i))(torch.arange(6)))(keys)
        many = random.bits(keys[0], (33_000,))  # threads divide them
        return [of_each, twice, many, random.permutation(keys[1], 50), random.split(keys[2], 3)]

    wanted = draws(keys)
    with threefry.using(threefry2x32):
        found = draws(keys)
    assert tree.equal(wanted, found)
    program, graph = build(tmp_path, draws, keys)
    program.keep([*graph.constants, keys], 0)
    assert tree.equal(wanted, program([]))
