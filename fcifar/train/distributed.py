"""Several processes (ranks) that run the same program, started by ``torchrun``.

Every rank computes the same state; only rank 0 writes files and shows progress. Every rank must
call the collectives below in the same order. With one process they do nothing.
"""

import contextlib
import functools
import os
import time
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.cuda import nccl

from fcifar import parallel, tree
from fcifar.errors import ExternalError, UsageError, one_line, shown
from fcifar.parallel import Axis
from fcifar.train.runtime import Runtime
from fcifar.tree import Tree

TIMEOUT = "FCIFAR_TIMEOUT"  # collective timeout in seconds; a slower rank counts as hung
_LONG = timedelta(days=365)  # for what rank 0 does alone, such as a download
_GRACE = 1.0  # seconds for a rank that failed to report first


class LostError(ExternalError):
    """Another rank ended, or did not answer in time."""


def rank() -> int:
    """Return the rank of this process."""
    return _variable("RANK", 0)


def world_size() -> int:
    """Return the number of processes. Raises a UsageError if torchrun's variables are invalid."""
    size = _variable("WORLD_SIZE", 1)
    if rank() >= size:
        raise UsageError(
            f"$RANK is {rank()} and $WORLD_SIZE {size}; start several processes with torchrun, "
            "which sets both"
        )
    return size


def local_rank() -> int:
    """Return the rank of this process on its host."""
    return _variable("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def restarts() -> tuple[int, int]:
    """Return torchrun's restart count and its ``--max-restarts``."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0), _variable("TORCHELASTIC_MAX_RESTARTS", 0)


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"${name} is {shown(text)}; it must be a whole number")
    return int(text)


def _timeout() -> timedelta:
    return timedelta(seconds=max(1, _variable(TIMEOUT, 600)))


# The process group -------------------------------------------------------------------------------


@contextlib.contextmanager
def group(runtime: Runtime) -> Generator[Axis]:
    """Yield the axis of the ranks that divide each batch.

    Uses ``torch.distributed``'s default group. If there is none, initializes it (gloo on the CPU,
    NCCL on CUDA) and destroys it at the end. Raises a UsageError if the number of ranks is not that
    of ``runtime``, and a LostError if another rank is lost within the block.
    """
    expected, actual = runtime.processes, world_size()
    if expected != actual:
        raise UsageError(
            f"this is a run of {expected} process{'es' if expected > 1 else ''}, and {actual} "
            f"{'are' if actual > 1 else 'is'} running; start it with {command(expected)} ..."
        )
    if expected == 1:
        yield parallel.ALONE
        return
    with _naming_lost_ranks():
        is_ours = not distributed.is_initialized()
        if is_ours:
            cuda = torch.device(runtime.device).type == "cuda"
            if cuda:
                torch.cuda.set_device(runtime.device)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=distributed.PrefixStore("group", store()),
                rank=rank(),
                world_size=expected,
                timeout=_timeout(),
            )
        try:
            yield parallel.across_ranks()
        finally:
            if is_ours and distributed.is_initialized():
                distributed.destroy_process_group()


def group_name() -> str:
    """Return what torch's operations call the default group; empty if there is none."""
    return distributed.group.WORLD.group_name if distributed.is_initialized() else ""  # type: ignore[union-attr]


@contextlib.contextmanager
def _naming_lost_ranks() -> Generator[None]:
    """Raise a LostError for torch's errors of a failed collective."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        is_backend = any(name in text.lower() for name in ("gloo", "nccl", "c10d"))
        if not isinstance(error, distributed.DistError) and not is_backend:
            raise
        how = "did not answer in time" if "imed out" in text or "imeout" in text else "has ended"
        raise LostError(f"another of the {world_size()} processes {how}") from error


def command(processes: int) -> str:
    """Return the command that starts fcifar with that many processes."""
    return f"torchrun --nproc-per-node {processes} -m fcifar" if processes > 1 else "fcifar"


# Collectives -------------------------------------------------------------------------------------


def broadcast(values: Tree, axis: Axis) -> Tree:
    """Return the tree of rank 0 on every rank. All trees have the same shapes and dtypes."""
    if axis.size == 1:
        return values

    def from_main(leaf: Tensor) -> Tensor:
        leaf = leaf.contiguous().clone()
        distributed.broadcast(leaf, 0)
        return leaf

    return tree.map(from_main, values)


def maximum(values: Sequence[float], axis: Axis) -> list[float]:
    """Return the maximum of each value over the ranks, by one all-reduce."""
    if axis.size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def check_equal(state: Tree, axis: Axis) -> None:
    """Raise an ExternalError unless a tree has the same bits on every rank."""
    if axis.size == 1:
        return
    digest = tree.digest(state)
    words = [float(int(digest[i : i + 8], 16)) for i in range(0, len(digest), 8)]
    if maximum([*words, *(-w for w in words)], axis) != [*words, *(-w for w in words)]:
        raise ExternalError(
            f"the {axis.size} processes have computed different parameters, as different kinds of "
            "processors may; use hosts of one kind"
        )


# Through the rendezvous store, without a process group -------------------------------------------


@functools.cache
def store() -> Any:
    """Return the key-value store that all ranks share; a new one after each restart by torchrun."""
    try:
        shared, _, _ = next(distributed.rendezvous("env://", timeout=_timeout()))
    except ValueError as error:
        raise UsageError(
            f"$WORLD_SIZE is {world_size()}, and the processes cannot find each other: "
            f"{one_line(error)}; start them with torchrun"
        ) from error
    except RuntimeError as error:
        raise ExternalError(f"the processes cannot find each other: {one_line(error)}") from error
    return distributed.PrefixStore(f"fcifar/{restarts()[0]}", shared)


@contextlib.contextmanager
def main_first(name: str) -> Generator[None]:
    """Run the block on rank 0 first; the other ranks wait for it without a timeout."""
    if world_size() > 1 and not is_main():
        with _naming_lost_ranks():
            store().wait([name], _LONG)
    yield
    if world_size() > 1 and is_main():
        store().set(name, "done")


def from_main(name: str, text: str) -> str:
    """Return the text of rank 0 on every rank."""
    if world_size() == 1:
        return text
    with main_first(name):
        if is_main():
            store().set(f"text/{name}", text)
    return store().get(f"text/{name}").decode()


def report_done(outcome: str) -> None:
    """Report to rank 0 that this rank has trained its share of a sweep."""
    store().set(f"done/{rank()}", outcome)


def outcomes() -> list[str]:
    """Return what the other ranks have reported so far."""
    keys = [f"done/{other}" for other in range(1, world_size())]
    return [store().get(key).decode() for key in keys if store().check([key])]


def should_print(error: BaseException) -> bool:
    """Whether this rank prints an error: only the first rank that failed does."""
    if world_size() == 1:
        return True
    try:
        if isinstance(error, LostError):  # the lost rank reports its own error first
            time.sleep(_GRACE)
        return store().add("failed", 1) == 1
    except RuntimeError:  # torchrun has ended already, also as an ExternalError
        return is_main()


def available() -> list[str]:
    """Return the backends of this torch, with NCCL's version."""
    if not distributed.is_available():
        return []
    backends = ["gloo"] if distributed.is_gloo_available() else []
    if distributed.is_nccl_available():
        version = nccl.version() if torch.cuda.is_available() else ()
        backends.append(f"nccl {'.'.join(map(str, version))}".strip())
    return backends
