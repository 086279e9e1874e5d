"""SIGKILL at random moments: a short version of ``kill.py``, and the long one."""

from pathlib import Path

import kill
import pytest

from fcifar.data import Dataset, save

TINY = ("--dataset", "tiny", "--steps", "2")
MORE = ("--", "--epochs", "6", "--batch-size", "5", "--log-every", "4", "--threads", "1")


@pytest.mark.parametrize(
    ("kills", "options"),
    [(1, ["--no-figures"]), pytest.param(20, [], marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_killed_and_resumed_runs_end_with_the_same_bits(
    kills: int,
    options: list[str],
    tmp_path: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    save(dataset, tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--kills", str(kills), *options, *TINY, *MORE, "--valid-fraction", "0.2"]
    assert kill.main(words) == 0
    assert f"{kills} kills in" in capfd.readouterr().out
