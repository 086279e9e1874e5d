"""A million uniforms: fcifar's keyed draw, eager and compiled, against torch.rand."""

import pytest
import torch

from fcifar import random

pytestmark = pytest.mark.slow

N = 1_000_000


@pytest.mark.benchmark(group="a million uniforms")
def test_torch_rand(benchmark) -> None:
    benchmark(torch.rand, N)


@pytest.mark.benchmark(group="a million uniforms")
def test_fcifar_uniform_compiled(benchmark) -> None:
    draw = torch.compile(lambda key: random.uniform(key, (N,)), fullgraph=True)
    key = random.key(0)
    draw(key)
    benchmark(draw, key)


@pytest.mark.benchmark(group="a million uniforms")
def test_fcifar_uniform_eager(benchmark) -> None:
    benchmark(random.uniform, random.key(0), (N,))
