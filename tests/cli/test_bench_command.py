"""``fcifar bench``: the table, the document, and what it refuses."""

import json
import sys
from collections.abc import Callable

import pytest

from fcifar import cli
from fcifar.bench import bench


@pytest.fixture
def fcifar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """The command line on a machine without a compiler, with one tiny step to measure."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(bench, "CASES", (bench.Case("lenet", 2),))
    monkeypatch.setattr(bench, "REPETITIONS", 3)
    few = bench.synthetic(8)
    monkeypatch.setattr(bench, "synthetic", lambda: few)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fcifar", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


USUAL = ("bench", "--seconds", "1", "--device", "cpu", "--threads", "1")


def test_a_table_for_this_machine(fcifar) -> None:
    status, out, err = fcifar(*USUAL)
    assert status == 0
    assert "lenet batch 2 cpu" in out
    assert "PyTorch module" in out
    assert "1 thread" in out
    assert "without fcifar --compile" in err
    assert all(len(line) <= 80 for line in out.splitlines())


def test_one_json_document(fcifar) -> None:
    status, out, err = fcifar(*USUAL, "--json", "--quiet")
    result = json.loads(out)
    assert status == 0
    assert "batch" not in err
    assert set(result["results"]) == {"step lenet batch 2 cpu"}
    steps = result["results"]["step lenet batch 2 cpu"]
    assert set(steps) == {"module", "fcifar_eager"}
    assert steps["module"]["times_module"] == 1
    for figures in steps.values():
        assert len(figures["seconds"]) == bench.REPETITIONS
        assert figures["median_seconds"] in figures["seconds"]
    assert result["environment"]["threads"] == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "3601", "soon"])
def test_seconds_that_cannot_be_spent(fcifar, seconds: str) -> None:
    status, out, err = fcifar("bench", "--seconds", seconds)
    assert (status, out) == (2, "")
    assert err.startswith("error:")
    assert "--seconds" in err


def test_help_says_what_the_seconds_are(fcifar) -> None:
    assert "Total time of all measurements" in fcifar("bench", "--help")[1]


def test_times_have_three_digits() -> None:
    from fcifar.cli.bench import _time

    assert [_time(s) for s in (4.56e-5, 1.234e-3, 0.01234, 0.1234, 1.234)] == [
        *("0.0456 ms", "1.23 ms", "12.3 ms", "123 ms", "1234 ms")
    ]
