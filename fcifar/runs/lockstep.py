"""Runs in lockstep: each a row of one stacked state, and one step for all of them."""

import time

from fcifar import replicas, tree
from fcifar.running import Feed, Running
from fcifar.runs.program import Program, stage_at
from fcifar.runs.saving import Place
from fcifar.runs.session import NonFiniteError, Session
from fcifar.runs.stepping import Ended, Hold, Steps, Stop, steps


def drive(
    program: Program,
    sittings: dict[int, Session],
    places: dict[int, Place],
    stacked: Running,
    count: int,
    stop: Stop,
) -> dict[int, Ended | NonFiniteError]:
    """Make the steps of several runs at once, until the last has ended.

    Args:
        sittings: of the runs, by their row in the stack; a row without one is computed and not
            looked at.
        places: where each begins.
        stacked: their states, ``count`` rows; it is overwritten.

    Returns:
        How each ended, with its state taken out of the stack; or that it met a number that is not
        finite.
    """
    started = time.perf_counter()

    def hold(i: int) -> Hold:
        def put(running: Running) -> None:
            tree.map(lambda rows, row: rows[i].copy_(row), stacked, running)

        return Hold(lambda: tree.map(lambda row: row.clone(), replicas.take(stacked, i)), put)

    moves: dict[int, Steps] = {
        i: steps(
            sittings[i],
            places[i],
            hold(i),
            timer=lambda: (time.perf_counter() - started) / count,  # its share
        )
        for i in sittings
    }
    ended: dict[int, Ended | NonFiniteError] = {}
    while len(ended) < len(moves):
        signum = stop()  # asked once, so that all end after the same step
        asked: dict[int, tuple[int, Feed]] = {}
        for i in moves.keys() - ended.keys():
            try:
                move = next(moves[i])
                if signum is not None:
                    moves[i].send(signum)
                asked[i] = move
            except StopIteration as end:
                ended[i] = end.value
            except NonFiniteError as error:
                ended[i] = error
        if asked:
            (step,) = {step for step, _ in asked.values()}
            filler = next(iter(asked.values()))
            feeds = replicas.stack([asked.get(i, filler)[1] for i in range(count)])
            stacked, _ = stage_at(program.mapped_stages, step)(stacked, feeds)
    return ended


def warm_up(program: Program, stacked: Running, *, compiled: bool) -> float:
    """Compile the steps over a stack for each shape of batch, on copies of it; the seconds."""
    started = time.perf_counter()
    if not compiled:
        return 0.0
    count = len(stacked.nonfinite)
    last_epoch = program.feeds_from(program.total_steps - program.steps_per_epoch)
    shapes = {len(feed.rows): feed for feed in last_epoch}.values()
    for step in program.mapped_stages.values():
        for feed in shapes:
            copy, _ = step(tree.map(lambda x: x.clone(), stacked), replicas.stack([feed] * count))
            int(copy.state.step[0])  # wait for the device
    return time.perf_counter() - started
