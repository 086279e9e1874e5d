"""Making the steps that a run asks for, one after another."""

import time

from fcifar.runs import together
from fcifar.runs.program import Program
from fcifar.runs.stepping import Ended, Hold, Steps, Stop

_ROUND = 0.05  # seconds; for so long other processes make steps before they hear from rank 0 again


def drive(
    program: Program,
    moves: Steps,
    hold: Hold,
    *,
    stop: Stop = lambda: None,
    until: int | None = None,
) -> Ended:
    """Make every step that a run asks for.

    Args:
        stop: asked before each step, or before each few steps of several processes; a signal
            number ends the run there.
        until: ends it after so many steps, as a signal of number 0 would.
    """
    size, planned, started, step = program.axis.size, 0, time.perf_counter(), 0
    length = 1  # steps of a round
    try:
        step, feed = next(moves)
        while True:
            if not planned:
                signum = 0 if step == until else stop()
                if signum is not None:
                    moves.send(signum)
                if size > 1:
                    length = _next_length(length, time.perf_counter() - started)
                    started = time.perf_counter()
                planned = min(length, _steps_left(program, step, until))
                together.announce(program, planned)
            planned -= 1
            hold.put(together.take_step(program, 0, step, hold.get(), feed))
            step, feed = next(moves)
    except StopIteration as end:
        return end.value


def _steps_left(program: Program, step: int, until: int | None) -> int:
    """How many steps are sure to come: up to the next place where the run may end or evaluate."""
    of_epoch = program.steps_per_epoch - step % program.steps_per_epoch
    return of_epoch if until is None else min(of_epoch, until - step)


def _next_length(length: int, seconds: float) -> int:
    """How many steps fit into a round, when the last of ``length`` took ``seconds``."""
    return max(1, min(4 * length, int(length * _ROUND / max(seconds, 1e-9))))
