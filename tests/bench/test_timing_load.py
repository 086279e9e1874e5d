"""Other processes that compute are noticed."""

import pytest

from fcifar.bench import timing
from fcifar.bench.timing import Load


def test_what_others_use_is_what_is_left() -> None:
    before, after = Load(10.0, 100.0, 3.0), Load(14.0, 107.0, 6.5)
    assert timing.used_by_others(before, after) == pytest.approx((7.0 - 3.5) / 4.0)
    assert timing.used_by_others(before, Load(14.0, 101.0, 6.5)) == 0.0
    assert timing.used_by_others(Load(0.0, None, 0.0), after) is None


@pytest.mark.parametrize(("cores", "says"), [(None, ""), (0.05, ""), (0.8, "used 0.8 of")])
def test_only_what_matters_is_said(cores: float | None, says: str) -> None:
    notice = timing.busy_notice(cores)
    assert bool(notice) == bool(says)
    assert says in notice


def test_the_times_of_this_machine_can_be_read() -> None:
    first, second = timing.load(), timing.load()
    assert second.elapsed >= first.elapsed
    assert second.process >= first.process > 0
    assert first.machine is None or second.machine >= first.machine
