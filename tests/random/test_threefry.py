"""The cipher of a few words, which Python's integers encrypt where nothing has to see it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fcifar import random
from fcifar.random import threefry

WORDS = st.integers(-(2**31), 2**31 - 1)


@given(key=st.tuples(WORDS, WORDS), pairs=st.lists(st.tuples(WORDS, WORDS), max_size=8))
def test_a_few_words_are_encrypted_as_many_are(
    key: tuple[int, int], pairs: list[tuple[int, int]]
) -> None:
    k0, k1 = torch.tensor(key, dtype=torch.int32)
    words = torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2).T
    for x0, x1 in (words, words[:, :, None], words[:, :1].squeeze(-1) if pairs else words):
        found = threefry.in_python(k0, k1, x0, x1)
        for a, b in zip(found, threefry.in_memory(k0, k1, x0, x1), strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype


def draw(key: Tensor) -> Tensor:
    return random.bits(random.fold_in(random.split(key)[0], 3), (2,))


def for_each(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda keys: torch.stack([function(key) for key in keys])


def in_jvp(key: Tensor) -> Tensor:
    one = torch.ones(())
    return jvp(lambda x: (x * 2, draw(key)), (one,), (one,))[0][1]


def in_grad(key: Tensor) -> Tensor:
    return grad(lambda x: (x * 2, draw(key)), has_aux=True)(torch.ones(()))[1]


def with_another_default_device(key: Tensor) -> Tensor:
    with torch.device("meta"):
        return draw(key)


KEY = random.key(1)
SEEN: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "vmap": lambda: vmap(draw),
    "vmap twice": lambda: lambda keys: vmap(vmap(draw))(keys[None])[0],
    "jvp": lambda: for_each(in_jvp),
    "vmap of grad": lambda: vmap(in_grad),
    "functionalize": lambda: for_each(functionalize(draw)),
    "make_fx": lambda: for_each(make_fx(draw)(KEY)),
    "make_fx of fakes": lambda: for_each(make_fx(draw, tracing_mode="fake")(KEY)),
    "vmap of make_fx": lambda: vmap(make_fx(draw)(KEY)),
    "default device": lambda: for_each(with_another_default_device),
    "jit.trace": lambda: for_each(torch.jit.trace(draw, KEY)),
    "compile": lambda: for_each(torch.compile(draw, backend="aot_eager", fullgraph=True)),
}


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace has several
@pytest.mark.parametrize("name", SEEN)
def test_a_recorded_draw_is_not_a_constant(name: str) -> None:
    """What records or maps operations sees those of the cipher, whatever the key is later."""
    keys = random.split(random.key(7), 4)
    assert torch.equal(SEEN[name]()(keys), for_each(draw)(keys))


def test_a_plain_draw_is_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(threefry, "in_memory", lambda *words: calls.append(words))
    draw(random.key(3))
    assert not calls
