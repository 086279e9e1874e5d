"""Ranks as threads of one process, so that tests need no other."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fcifar.parallel import Axis, sum_flat


def together(size: int, function: Callable[[int, Axis], Any]) -> list[Any]:
    """What ``function(rank, axis)`` gives for each of ``size`` ranks, all at the same time."""
    barrier = threading.Barrier(size, timeout=120)
    vectors: list[Any] = [None] * size

    def play(rank: int) -> Any:
        def add_up(vector: Tensor) -> Tensor:
            vectors[rank] = vector.detach().clone()
            barrier.wait()
            total = torch.stack(vectors).sum(0)
            barrier.wait()  # nobody puts in the next one before all have read these
            return total

        class Sum(torch.autograd.Function):
            @staticmethod
            def forward(vector):
                return add_up(vector)

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, gradient):
                return Sum.apply(gradient)

        try:
            return function(rank, Axis(size, functools.partial(sum_flat, sum_vector=Sum.apply)))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(play, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    for error in sorted(filter(None, errors), key=_is_of_another):
        raise error
    return [future.result() for future in futures]


def _is_of_another(error: BaseException) -> bool:
    return isinstance(error, threading.BrokenBarrierError)
