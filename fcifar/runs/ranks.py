"""The processes that ``torchrun`` starts together, and how they find each other.

Rank 0 leads: it alone reads the command line, writes files and shows progress. The others wait for
jobs, values that JSON holds, which it leaves in the store of the rendezvous.
"""

import contextlib
import functools
import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from fcifar import tree
from fcifar.errors import UserError, WorldError, one_line, shown
from fcifar.tree import Tree

TIMEOUT = timedelta(minutes=10)  # of one exchange; who is later hangs
_FOR_EVER = timedelta(days=365)
_QUIT = "quit"
_POLL = 0.02  # seconds between two looks


class LostError(WorldError):
    """Another process ended, or did not answer in time."""


class Rank(NamedTuple):
    """Which of the processes this is."""

    rank: int = 0
    size: int = 1
    local: int = 0  # which of those on this host


def here() -> Rank:
    """This process among those that torchrun started; the only one without torchrun.

    Raises:
        UserError: the variables that torchrun sets are there and make no sense.
    """
    found = {}
    for name, variable in (
        ("rank", "RANK"),
        ("size", "WORLD_SIZE"),
        ("local", "LOCAL_RANK"),
    ):
        text = os.environ.get(variable, str(Rank._field_defaults[name]))
        if not text.isdecimal():
            raise UserError(
                f"${variable} is {shown(text)}; it must be a whole number, as torchrun sets it"
            )
        found[name] = int(text)
    if found["rank"] >= found["size"]:
        raise UserError(
            f"$RANK is {found['rank']} and $WORLD_SIZE {found['size']}; start several processes "
            "with torchrun, which sets both"
        )
    return Rank(**found)


# Jobs --------------------------------------------------------------------------------------------


def post(job: dict[str, Any]) -> int:
    """Leave a job for the other ranks; its number."""
    store = _store()
    number = store.add("jobs", 1)
    store.set(f"job/{number}", json.dumps(job))
    return number


def dismiss() -> None:
    """Tell the other ranks that no job will follow."""
    if here().size > 1:
        with contextlib.suppress(RuntimeError):  # of torchrun's end
            post({"kind": _QUIT})


def jobs() -> Iterator[tuple[int, dict[str, Any]]]:
    """The jobs that rank 0 leaves, and their numbers, until it leaves no more."""
    store = _store()
    number = 1
    while True:
        with telling():
            store.wait([f"job/{number}"], _FOR_EVER)
        job = json.loads(store.get(f"job/{number}"))
        if job["kind"] == _QUIT:
            return
        yield number, job
        number += 1


def report(number: int, outcome: str) -> None:
    """Tell rank 0 how a job of one's own went."""
    _store().set(f"done/{number}/{here().rank}", outcome)


def reported(number: int, rank: int) -> str | None:
    """What a rank told of a job, if it has come to its end."""
    store, name = _store(), f"done/{number}/{rank}"
    return store.get(name).decode() if store.check([name]) else None


def claim(what: str) -> bool:
    """Whether this process is the first to claim this."""
    return _store().add(f"claimed/{what}", 1) == 1


def is_claimed(what: str) -> bool:
    """Whether any process has claimed this."""
    return _store().check([f"claimed/{what}"])


def remember(name: str, value: str) -> None:
    """Keep a value where these processes find it when torchrun has started them anew."""
    _open_store().set(f"fcifar/{name}", value)


def recall(name: str) -> str | None:
    """What was remembered under this name before."""
    store, key = _open_store(), f"fcifar/{name}"
    return store.get(key).decode() if store.check([key]) else None


@functools.cache
def _store() -> distributed.Store:
    """The one that all ranks share, and had no part in anything before they met in it.

    The server may outlive the processes: what was said before torchrun started them anew must not
    count again, and no variable says how often it did. So each rank knocks with a name of its own,
    new each time, and rank 0 answers it with the name of the place to go to.

    Raises:
        LostError: not all of them came.
    """
    store, rank = _open_store(), here()
    if rank.rank:
        own = uuid.uuid4().hex
        store.set(f"fcifar/knock/{rank.rank}", own)
        with telling():
            store.wait([f"fcifar/answer/{own}"], _FOR_EVER)
        place = store.get(f"fcifar/answer/{own}").decode()
        store.set(f"fcifar/{place}/{rank.rank}", "here")
        return distributed.PrefixStore(place, store)
    place, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    missing = set(range(1, rank.size))
    while missing:
        for other in missing:
            if store.check([knock := f"fcifar/knock/{other}"]):
                store.set(f"fcifar/answer/{store.get(knock).decode()}", place)
        missing = {other for other in missing if not store.check([f"fcifar/{place}/{other}"])}
        if missing and time.monotonic() > deadline:
            raise LostError(f"process {min(missing)} of {rank.size} did not come to the others")
        time.sleep(_POLL)
    return distributed.PrefixStore(place, store)


@functools.cache
def _open_store() -> distributed.Store:
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (LookupError, ValueError) as error:
        raise UserError(
            f"$WORLD_SIZE is {here().size}, but $MASTER_ADDR and $MASTER_PORT do not say where the "
            "processes meet; start them with torchrun, which sets all three"
        ) from error
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_server = here().rank == 0 and not served
    try:
        return distributed.TCPStore(address, port, is_master=is_server, multi_tenant=True)
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"the processes cannot meet at {one_line(address)}:{port}: {one_line(error)}"
        ) from error


# Exchanges ---------------------------------------------------------------------------------------


def join(device: str) -> None:
    """Make ``torch.distributed``'s default group out of all ranks; each of them must call this.

    By gloo for tensors on the CPU, and by NCCL for those on a CUDA device.

    Raises:
        LostError: not all of them came.
    """
    if distributed.is_initialized():
        return
    rank = here()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    with telling():
        distributed.init_process_group(
            backend, store=_store(), rank=rank.rank, world_size=rank.size, timeout=TIMEOUT
        )


def leave() -> None:
    """Undo ``join``, so that a process that ends does so quietly."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Say what torch's error means, where an exchange failed.

    Raises:
        LostError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_an_exchange(error):
            raise
        how = "did not answer in time" if "imed out" in str(error) else "has ended"
        raise LostError(f"another of the {here().size} processes {how}") from error


def _is_of_an_exchange(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "nccl" in text


def broadcast(values: Tree) -> Tree:
    """The tree of rank 0, on every rank; the others give one of the same shapes."""

    def from_first(leaf: Tensor) -> Tensor:
        leaf = leaf.contiguous().clone()
        distributed.broadcast(leaf, 0)
        return leaf

    return tree.map(from_first, values)


def are_equal(digest: str) -> bool:
    """Whether all ranks have this digest of hexadecimal digits."""
    words = torch.tensor([int(digest[i : i + 8], 16) for i in range(0, len(digest), 8)])
    low, high = words.clone(), words.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    return torch.equal(low, high)


def available() -> list[str]:
    """Names of the backends that this torch has, with NCCL's version."""
    if not distributed.is_available():
        return []
    names = ["gloo"] if distributed.is_gloo_available() else []
    if distributed.is_nccl_available():
        version = torch.cuda.nccl.version() if torch.cuda.is_available() else ()
        names.append(" ".join(["nccl", ".".join(map(str, version))]).strip())
    return names
