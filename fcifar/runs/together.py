"""A run that several processes make together, each with its part of every batch.

Rank 0 leads. It makes the run as it would alone: it decides, writes and tells by itself. Before
each thing that all must do together it says what it is, in a few numbers, and the others
(``follow``) do it too. Alone, nothing is said.
"""

import itertools
from typing import Any

import torch
from torch import distributed

from fcifar import running, tree
from fcifar.models import Variables
from fcifar.parallel import Axis
from fcifar.running import Feed, Running
from fcifar.runs import evaluate as evaluation
from fcifar.runs import ranks
from fcifar.runs.program import Program
from fcifar.step import Examples

_BEGIN, _WARM_UP, _STEPS, _EVALUATE, _AGREE, _END = range(6)
_SPLITS = ("valid", "test")


# What each process does --------------------------------------------------------------------------


def _compile_steps(program: Program, rank: int, state: Running) -> None:
    """Compile all that a run wants compiled, for each shape of batch, on copies of a state."""
    last_epoch = program.feeds_from(program.total_steps - program.steps_per_epoch)
    shapes = {len(feed.rows): feed for feed in last_epoch}.values()
    for step in program.stages.values():
        for feed in shapes:
            # A donated state is overwritten: the copy is what gets lost.
            copy = tree.map(lambda x: x.clone(), state)
            after, _ = step(copy, running.shard(feed, rank, program.axis.size))
            int(after.state.step)  # wait for the device
    first = tree.map(lambda x: x[:1], program.test)
    for eval_step in program.compiled_evals:
        evaluation.evaluate(eval_step, program.value(state.state), first)


def take_step(program: Program, rank: int, step: int, state: Running, feed: Feed) -> Running:
    """Make the step after ``step`` others, with a rank's part of the batch."""
    part = running.shard(feed, rank, program.axis.size)
    new, _ = program.step_at(step)(state, part)
    return new


def _evaluate(
    program: Program, rank: int, variables: Variables, split: str, plain: bool
) -> Examples:
    step = program.eval_step if plain else program.eval_views_step
    data = getattr(program, split)
    size = program.axis.size
    # Zero where another process evaluates: the sum is what each of them found.
    found = evaluation.evaluate(step, variables, data, rank=rank, size=size)
    return Examples(*program.axis.psum(found))


def _agree(state: Running) -> bool:
    return ranks.are_equal(tree.digest(state.state))


# Rank 0 ------------------------------------------------------------------------------------------


def begin(program: Program, state: Running) -> None:
    """Give all processes the state to go on from."""
    if _say(program.axis, _BEGIN):
        ranks.broadcast(state)


def warm_up(program: Program, state: Running) -> None:
    """Compile whatever the run wants compiled, so that training does not wait for it."""
    _say(program.axis, _WARM_UP)
    _compile_steps(program, 0, state)


def announce(program: Program, steps: int) -> None:
    """Say that so many steps will be made."""
    _say(program.axis, _STEPS, steps)


def evaluate(program: Program, variables: Variables, split: str, *, plain: bool) -> Examples:
    """What the network makes of a split, ``valid`` or ``test``; not ``plain``: of several views."""
    if _say(program.axis, _EVALUATE, _SPLITS.index(split), int(plain)):
        ranks.broadcast(variables)
    return _evaluate(program, 0, variables, split, plain)


def agree(program: Program, state: Running) -> bool:
    """Whether all processes have come to the same state, bit for bit."""
    return not _say(program.axis, _AGREE) or _agree(state)


def end(axis: Axis) -> None:
    """Let the others go."""
    _say(axis, _END)


def _say(axis: Axis, order: int, *numbers: int) -> bool:
    """Whether there is anybody to say it to."""
    if axis.size == 1:
        return False
    distributed.broadcast(torch.tensor([order, *numbers, 0, 0])[:3], 0)
    return True


# The others --------------------------------------------------------------------------------------


def follow(program: Program, rank: int) -> None:
    """Do what rank 0 says, until it has said that this was all."""
    state = program.init()
    feeds: Any = iter(())
    heard = torch.zeros(3, dtype=torch.int64)
    while True:
        distributed.broadcast(heard, 0)
        order, a, b = heard.tolist()
        if order == _BEGIN:
            state = ranks.broadcast(state)
            step = int(state.state.step)
            feeds = enumerate(program.feeds_from(step), step)
        elif order == _WARM_UP:
            _compile_steps(program, rank, state)
        elif order == _STEPS:
            for step, feed in itertools.islice(feeds, a):
                state = take_step(program, rank, step, state, feed)
        elif order == _EVALUATE:
            variables = ranks.broadcast(program.value(state.state))
            _evaluate(program, rank, variables, _SPLITS[a], bool(b))
        elif order == _AGREE:
            _agree(state)
        else:
            return
