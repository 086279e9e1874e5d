"""Training a group: its members one after another, or all of them at once."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import replicas
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.runs import directory, environment, group, lockstep, loop, ranks, saving, sharing
from fcifar.runs.driving import drive
from fcifar.runs.events import Advanced, Event, Logged, Noted, Observe, Preparing, ignore
from fcifar.runs.finishing import finish
from fcifar.runs.group import Group, Member, Part
from fcifar.runs.lock import locked
from fcifar.runs.manifest import Settings
from fcifar.runs.program import Program, share
from fcifar.runs.runtime import activate
from fcifar.runs.saving import Place
from fcifar.runs.session import NonFiniteError, Session
from fcifar.runs.stepping import Ended, Stop, hold_alone, steps
from fcifar.runs.summary import sum_up


class Seat(NamedTuple):
    """A member that is about to train."""

    sitting: Session
    place: Place
    is_new: bool


class Common(NamedTuple):
    """What the members of a group have in common while they train."""

    path: Path
    asked: Group
    dataset: Dataset
    observe: Observe
    stop: Stop
    establish: Callable[[], None]  # write down what was asked, if that has not been done
    total: int  # members that this process trains


def train(
    path: Path,
    asked: Group,
    dataset: Dataset,
    *,
    resume: bool = False,
    observe: Observe = ignore,
    stop: Stop = lambda: None,
) -> dict[str, Any] | loop.Interrupted:
    """Train every member of a group, and sum up.

    A member whose loss is not finite stops, and the others go on: the summary says so.

    Args:
        path: the directory of the group, new or (with ``resume``) one that was interrupted; the
            members that had come to their end stay as they are.
        asked: what to train.
        observe: is told what happens.
        stop: asked before each step; a signal number ends the group after checkpoints.

    Returns:
        The summary, which is also in ``summary.json``; or ``Interrupted``.

    Raises:
        UserError: the request cannot be carried out; nothing was written.
        WorldError: the disk failed; what was written before is whole.
    """
    if not resume:
        directory.check_free(path)
    if dataset.digest != asked.dataset_digest:
        raise UserError(f"the data set {dataset.name} is not the one that {path} began with")
    with locked(path):
        if not resume:
            directory.check_free(path)
        number = None
        if ranks.here().size > 1:
            sharing.check(asked, dataset)
            _establishing(path, asked)()  # the others read it
            number = sharing.call(path, asked, dataset)
        result = train_shares(path, asked, dataset, observe=observe, stop=stop)
        if result is None and number is not None:
            observe(Preparing("waiting for the other processes"))
            if (signum := sharing.wait(number, path, asked, stop)) is not None:
                result = loop.Interrupted(signum, 0)
        if result is not None:
            return result
        observe(Preparing("summing up"))
        return sum_up(path, asked)


def train_shares(
    path: Path, asked: Group, dataset: Dataset, *, observe: Observe = ignore, stop: Stop
) -> loop.Interrupted | None:
    """Train what this process is to train of a group.

    That is the share of one of ``asked.runtime.processes``, and where fewer are here than that,
    those of several, one after another: who trains a share changes no bit of it.
    """
    if asked.compiled:
        environment.check_compiler(asked.runtime.device)
    rank, processes = ranks.here(), asked.runtime.processes
    numbers = range(rank.rank, processes, rank.size)
    total = sum(len(asked.members[number::processes]) for number in numbers)
    common = Common(path, asked, dataset, observe, stop, _establishing(path, asked), total)
    train_part = _at_once if asked.method == "vmap" else _one_after_another
    before = 0
    with activate(asked.runtime):
        parts = [(part, _build(part, asked, dataset)) for part in group.parts(asked.members)]
        for part, build in parts:
            for number in numbers:
                share = group.share(part, asked.members, number, processes)
                if share.members:
                    interrupted = train_part(common, share, build, before)
                    if interrupted is not None:
                        return interrupted
                    before += len(share.members)
    return None


def _build(part: Part, asked: Group, dataset: Dataset) -> Callable[[Member], Program]:
    first = part.members[0].recipe
    made = share(first, asked.runtime, dataset, compiled=asked.compiled, traced=part.traced)
    return lambda member: made(member.recipe, member.seed)


def _establishing(path: Path, asked: Group) -> Callable[[], None]:
    def establish() -> None:
        if not group.is_group(path):
            about = {
                "environment": environment.describe(m.recipe.model for m in asked.members),
                "argv": sys.argv,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            group.write(path, asked, about)

    return establish


def _one_after_another(
    common: Common, part: Part, build: Callable[[Member], Program], before: int
) -> loop.Interrupted | None:
    """Train the members of a part in turn, with what was compiled for the first."""
    is_warm = False
    for number, member in enumerate(part.members, before):
        if (signum := common.stop()) is not None:
            return loop.Interrupted(signum, 0)
        if _is_done(common, member):
            continue
        observe = _telling(common.observe, member.name, number, common.total)
        seat = _seat(common, part, member, build(member), observe)
        with locked(seat.sitting.run):
            if not seat.is_new:
                seat = seat._replace(place=loop.restore(seat.sitting, seat.place))
            if not is_warm:
                seat = seat._replace(place=loop.warm_up(seat.sitting, seat.place))
                is_warm = True
            place = _begin(common, seat)
            hold = hold_alone(place.running)
            try:
                moves = steps(seat.sitting, place, hold)
                ended = drive(seat.sitting.program, moves, hold, stop=common.stop)
            except NonFiniteError as error:
                observe(Noted(str(error)))
                continue
            if ended.signum is not None:
                return loop.Interrupted(ended.signum, int(ended.place.running.state.step))
            finish(seat.sitting, ended.place, ended.losses)
    return None


def _at_once(
    common: Common, part: Part, build: Callable[[Member], Program], before: int
) -> loop.Interrupted | None:
    """Train the members of a part in lockstep, each a row of one stacked state.

    The stack always has a row for each member, so that rounding does not depend on who has ended:
    who has, or had before, is a row that nobody looks at.
    """
    live = [i for i, member in enumerate(part.members) if not _is_done(common, member)]
    if not live:
        return None
    count = len(part.members)
    with contextlib.ExitStack() as locks:
        seats = {}
        for i in live:
            member = part.members[i]
            watch = _telling(common.observe, member.name, before, common.total, count)
            if i != live[0]:
                watch = _without_progress(watch)
            seats[i] = _seat(common, part, member, build(member), watch)
            locks.enter_context(locked(seats[i].sitting.run))
        shared = _common_steps([seat.sitting.run for seat in seats.values()])
        for i, seat in seats.items():
            if not seat.is_new:
                seats[i] = seat._replace(place=loop.restore(seat.sitting, seat.place, shared))
        rows = [seats.get(i, seats[live[0]]).place.running for i in range(count)]
        stacked = replicas.stack(rows)
        program = seats[live[0]].sitting.program
        seconds = lockstep.warm_up(program, stacked, compiled=common.asked.compiled)
        clock = seats[live[0]].place.clock
        warm = clock._replace(compile=clock.compile + seconds)
        seats[live[0]] = seats[live[0]]._replace(place=seats[live[0]].place._replace(clock=warm))
        began = {i: _begin(common, seat) for i, seat in seats.items()}
        sittings = {i: seat.sitting for i, seat in seats.items()}
        ended = lockstep.drive(program, sittings, began, stacked, count, common.stop)
        for i, end in ended.items():
            if isinstance(end, NonFiniteError):
                seats[i].sitting.observe(Noted(str(end)))
            elif end.signum is None:
                finish(seats[i].sitting, end.place, end.losses)
        stopped = [end for end in ended.values() if isinstance(end, Ended) and end.signum]
        if stopped:
            return loop.Interrupted(
                stopped[0].signum or 0, int(stopped[0].place.running.state.step)
            )
    return None


def _seat(common: Common, part: Part, member: Member, program: Program, observe: Observe) -> Seat:
    asked, run = common.asked, common.path / member.name
    settings = Settings(
        recipe=member.recipe,
        runtime=dataclasses.replace(asked.runtime, seed=member.seed, processes=1),
        compiled=asked.compiled,
        dataset_name=common.dataset.name,
        dataset_digest=common.dataset.digest,
        safeguards=asked.safeguards,
        traced=part.traced,
        mapped=len(part.members) if asked.method == "vmap" else 0,
    )
    sitting, place = loop.open_sitting(run, program, settings, common.dataset, observe)
    return Seat(sitting, place, is_new=not (run / directory.MANIFEST).exists())


def _begin(common: Common, seat: Seat) -> Place:
    """Make the directory of a new run, and of the group before the first."""
    if not seat.is_new:
        return seat.place
    common.establish()
    directory.check_free(seat.sitting.run)
    return loop.create(seat.sitting, seat.place)


def _is_done(common: Common, member: Member) -> bool:
    """Whether a member came to its end, or to a loss that is not finite."""
    return group.has_ended(common.path / member.name, common.asked)


def _common_steps(runs: Sequence[Path]) -> set[int]:
    """The steps that every one of the runs has a checkpoint of: a lockstep goes on from one."""
    found = [set(saving.list_checkpoints(run)) for run in runs]
    return set.intersection(*found)


def _telling(observe: Observe, name: str, before: int, members: int, together: int = 1) -> Observe:
    """Say whom an event is of, and count the steps of the whole group."""

    def tell(event: Event) -> None:
        match event:
            case Advanced(step=step, total_steps=total):
                done = step * together + before * total
                observe(event._replace(name=name, step=done, total_steps=total * members))
            case Preparing(what):
                observe(Preparing(f"{name}: {what}"))
            case Noted(text):
                observe(Noted(f"{name}: {text}"))
            case Logged(record):
                observe(Logged(record, name))

    return tell


def _without_progress(observe: Observe) -> Observe:
    """For all but one of the runs that advance together."""
    return lambda event: None if isinstance(event, Advanced) else observe(event)
