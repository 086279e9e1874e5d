"""Several processes (ranks) that run the same program, as ``torchrun`` starts them.

Every rank computes the same state; rank 0 alone writes files and shows progress. What the ranks
must agree upon goes through the functions here, which each of them calls at the same place. In one
process they do nothing.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from fcifar import parallel, tree
from fcifar.errors import ExternalError, UsageError, one_line, shown
from fcifar.parallel import Axis
from fcifar.train.runtime import Runtime
from fcifar.tree import Tree

TIMEOUT = "FCIFAR_TIMEOUT"  # collective timeout in seconds; a slower rank counts as hung
_LONG = timedelta(days=365)  # what rank 0 does alone, such as a download, may take its time
_FIRST_WORD = 1.0  # seconds in which the rank that failed says why, before the others say so


class LostError(ExternalError):
    """Another rank ended, or did not answer in time."""


def rank() -> int:
    """The number of this process, from 0."""
    return _variable("RANK", 0)


def world_size() -> int:
    """How many processes there are.

    Raises:
        UsageError: the variables that torchrun sets are there and make no sense.
    """
    size = _variable("WORLD_SIZE", 1)
    if rank() >= size:
        raise UsageError(
            f"$RANK is {rank()} and $WORLD_SIZE {size}; start several processes with torchrun, "
            "which sets both"
        )
    return size


def local_rank() -> int:
    """The number of this process among those of its host."""
    return _variable("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def restarts() -> tuple[int, int]:
    """How often torchrun has restarted the processes, and how often it may."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0), _variable("TORCHELASTIC_MAX_RESTARTS", 0)


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"${name} is {shown(text)}; it must be a whole number")
    return int(text)


def _timeout() -> timedelta:
    return timedelta(seconds=max(1, _variable(TIMEOUT, 600)))


# The group ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def group(runtime: Runtime) -> Iterator[Axis]:
    """The ranks that divide a run's batches, while the run lasts.

    Uses ``torch.distributed``'s default group, or makes it and destroys it at the end: by gloo for
    tensors on the CPU, and by NCCL for those on a CUDA device.

    Raises:
        UsageError: there are more or fewer ranks than ``runtime`` says.
        LostError: another rank ended, or did not answer in time.
    """
    wanted, found = runtime.processes, world_size()
    if wanted != found:
        raise UsageError(
            f"this is a run of {wanted} process{'es' if wanted > 1 else ''}, and {found} "
            f"{'are' if found > 1 else 'is'} here; start it with {command(wanted)} ..."
        )
    if wanted == 1:
        yield parallel.ALONE
        return
    with _naming_lost_ranks():
        own = not distributed.is_initialized()
        if own:
            cuda = torch.device(runtime.device).type == "cuda"
            if cuda:
                torch.cuda.set_device(runtime.device)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=distributed.PrefixStore("group", store()),
                rank=rank(),
                world_size=wanted,
                timeout=_timeout(),
            )
        try:
            yield parallel.across_ranks()
        finally:
            if own and distributed.is_initialized():
                distributed.destroy_process_group()


@contextlib.contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    """Raise a LostError for what torch raises where a collective failed."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        known = any(name in text.lower() for name in ("gloo", "nccl"))
        if not isinstance(error, distributed.DistError) and not known:
            raise
        how = "did not answer in time" if "imed out" in text or "imeout" in text else "has ended"
        raise LostError(f"another of the {world_size()} processes {how}") from error


def command(processes: int) -> str:
    """The command that starts fcifar in so many processes."""
    return f"torchrun --nproc-per-node {processes} -m fcifar" if processes > 1 else "fcifar"


# Collectives: every rank calls these at the same place -------------------------------------------


def broadcast(values: Tree, axis: Axis) -> Tree:
    """The tree of rank 0 on every rank; the others give one of the same shapes and dtypes."""
    if axis.size == 1:
        return values

    def from_main(leaf: Tensor) -> Tensor:
        leaf = leaf.contiguous().clone()
        distributed.broadcast(leaf, 0)
        return leaf

    return tree.map(from_main, values)


def maximum(values: Sequence[float], axis: Axis) -> list[float]:
    """The largest of each value over the ranks, by one all-reduce."""
    if axis.size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


def check_equal(state: Tree, axis: Axis) -> None:
    """Raise a ExternalError unless a tree has the same bits on every rank."""
    if axis.size == 1:
        return
    digest = tree.digest(state)
    words = [float(int(digest[i : i + 8], 16)) for i in range(0, len(digest), 8)]
    if maximum([*words, *(-w for w in words)], axis) != [*words, *(-w for w in words)]:
        raise ExternalError(
            f"the {axis.size} processes have computed different parameters, as processors of "
            "different kinds may; run them on hosts of one kind"
        )


# Without a group, through the store of the rendezvous --------------------------------------------


@functools.cache
def store() -> Any:
    """The key-value store that all ranks share; a new one each time torchrun restarts them.

    Raises:
        UsageError: the variables that torchrun sets are missing.
        ExternalError: it cannot be reached.
    """
    try:
        found, _, _ = next(distributed.rendezvous("env://", timeout=_timeout()))
    except ValueError as error:
        raise UsageError(
            f"$WORLD_SIZE is {world_size()}, and the processes cannot find each other: "
            f"{one_line(error)}; start them with torchrun"
        ) from error
    except RuntimeError as error:
        raise ExternalError(f"the processes cannot find each other: {one_line(error)}") from error
    return distributed.PrefixStore(f"fcifar/{restarts()[0]}", found)


@contextlib.contextmanager
def main_first(what: str) -> Iterator[None]:
    """Rank 0 runs the block first; the others wait for its end, however long it takes."""
    if world_size() > 1 and not is_main():
        with _naming_lost_ranks():
            store().wait([what], _LONG)
    yield
    if world_size() > 1 and is_main():
        store().set(what, "done")


def from_main(name: str, text: str) -> str:
    """The text of rank 0, on every rank."""
    with main_first(name):
        if world_size() > 1 and is_main():
            store().set(f"text/{name}", text)
    return text if world_size() == 1 else store().get(f"text/{name}").decode()


def report_done(outcome: str) -> None:
    """Tell rank 0 that this rank has trained its share of a sweep."""
    store().set(f"done/{rank()}", outcome)


def outcomes() -> list[str]:
    """What the other ranks have reported so far."""
    keys = [f"done/{other}" for other in range(1, world_size())]
    return [store().get(key).decode() for key in keys if store().check([key])]


def should_print(error: BaseException) -> bool:
    """Whether this rank is the one to print an error: the first that failed, and one alone.

    A rank that merely lost another one leaves the first word to that one.
    """
    if world_size() == 1:
        return True
    try:
        if isinstance(error, LostError):
            time.sleep(_FIRST_WORD)
        return store().add("failed", 1) == 1
    except (RuntimeError, ExternalError):  # torchrun has ended already
        return is_main()


def available() -> list[str]:
    """The backends that this torch has, with NCCL's version."""
    if not distributed.is_available():
        return []
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else ""
    found = {
        "gloo": distributed.is_gloo_available(),
        f"nccl {nccl}".strip(): distributed.is_nccl_available(),
    }
    return [name for name, there in found.items() if there]
