"""A step through ``torch.compile``: the only impure doorway."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fcifar import kernels, tree


def compile_step(
    step: Callable[[Any, Any], tuple[Any, Any]], *, donate: bool = True
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The same step through ``torch.compile``, as one graph for each shape of batch.

    On the CPU the graph has kernels of our own in it, see ``fcifar.kernels``. What the step closes
    over is read once, while it is compiled, as ``jax.jit`` has it; its arguments, and torch's
    switches, are looked at before each call.

    Args:
        step: a pure ``(state, batch) -> (state, metrics)``.
        donate: write the new state into the old state's memory and return that, as JAX's
            ``donate_argnums`` allows. The state that was passed in is then gone; clone it first
            (``tree.map(torch.clone, state)``) to keep it. With ``donate=False`` the compiled step
            is as pure as the original.

    >>> step = fcifar.compile_step(lambda state, batch: (state + batch, batch), donate=False)
    >>> step(torch.tensor([1.0]), torch.tensor([2.0]))
    (tensor([3.]), tensor([2.]))
    """
    if not donate:
        return compile_pure(step)

    def in_place(state: Any, batch: Any) -> Any:
        new_state, metrics = step(state, batch)
        tree.map(lambda old, new: old if new is old else old.copy_(new), state, new_state)
        return metrics

    compiled = compile_pure(in_place)

    def donating(state: Any, batch: Any) -> tuple[Any, Any]:
        metrics = compiled(state, batch)
        return state, metrics

    return donating


def compile_pure(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two trees of tensors through ``torch.compile``, as ``compile_step`` has it."""

    def compiled(first: Any, second: Any) -> Any:
        return function(first, second)

    # Torch keeps what it compiled by code, and tells functions of one code apart by checks on what
    # they close over, which are left out here: so each gets a code of its own.
    code = compiled.__code__
    compiled.__code__ = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
    return torch.compile(
        compiled,
        backend=kernels.backend,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": _keep_those_on_arguments},
    )


_NUMBERS = itertools.count()


def _keep_those_on_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's checks before each call to keep: those of arguments and of switches.

    The others, many hundreds, ask whether the code has been changed since, and take a fifth of a
    small step's time.
    """
    return [_ARGUMENT.match(guard.name) is not None for guard in guards]


# As torch names them: ``first.state.key``, or in earlier versions ``L['first'].state.key``.
_ARGUMENT = re.compile(r"$|(L\[')?(first|second)\b")
