"""What a folder of runs is said to hold, and what may be removed of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fcifar import io
from fcifar.errors import ExternalError, UsageError
from fcifar.runs import listing
from fcifar.train import run_dir

RECIPE = {"name": "blitz"}


def make_run(path: Path, *, created: str = "2026-01-02T03:04:05+00:00", **report: Any) -> Path:
    manifest = {
        "recipe": RECIPE,
        "seed": 3,
        "dataset": {"name": "tiny"},
        "environment": {},
        "created": created,
    }
    run_dir.write_manifest(path, manifest)
    if report:
        run_dir.write_result(path, report)
    return path


def make_group(path: Path, names: list[str], ended: int) -> Path:
    members = [{"name": n, "recipe": RECIPE, "seed": i, "changes": {}} for i, n in enumerate(names)]
    values = {
        "members": members,
        "recipe": RECIPE,
        "seed": 0,
        "dataset": {"name": "tiny", "digest": "0"},
        "environment": {},
        "created": "2026-01-03T00:00:00+00:00",
    }
    run_dir.write_manifest(path, values, run_dir.SWEEP)
    for name in names[:ended]:
        make_run(path / name, steps=9, test_accuracy=0.5)
    return path


def state(path: Path) -> tuple[str, str]:
    entry = listing.describe(path)
    return entry.state, entry.about


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Listing ------------------------------------------------------------------------------------------


def test_runs_are_listed_by_date(tmp_path: Path) -> None:
    make_run(tmp_path / "a", created="2026-03-01T00:00:00+00:00", steps=9, test_accuracy=0.25)
    make_run(tmp_path / "b", created="2026-02-01T00:00:00+00:00")
    make_group(tmp_path / "c", ["seed0", "seed1"], 1)
    (tmp_path / "not a run").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    entries = listing.find(tmp_path)
    assert [entry.name for entry in entries] == ["c", "b", "a"]
    a = entries[-1]
    assert (a.recipe, a.dataset, a.seed, a.state) == ("blitz", "tiny", 3, "finished")
    assert a.test_accuracy == 0.25
    assert a.bytes == sum(len(content) for content in contents(tmp_path / "a").values())
    assert listing.find(tmp_path / "nowhere") == []


def test_states(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert state(run) == ("interrupted", "before its first checkpoint")
    assert listing.describe(run).resume == f"fcifar train --resume {run}"
    for step in (9, 100):
        run_dir.checkpoint_path(run, step).touch()
    assert state(run) == ("interrupted", "at step 100")
    with io.locked(run):
        assert state(run) == ("running", "at step 100")
        assert listing.describe(run).resume is None
    assert state(run) == ("interrupted", "at step 100"), "looking took no lock for good"
    io.write_json(run / run_dir.NONFINITE, {"what": "the loss", "step": 7})
    assert state(run) == ("failed", "the loss not finite at step 7")
    run_dir.write_result(run, {"steps": 1200, "test_accuracy": 0.5})
    assert state(run) == ("finished", "1,200 steps")
    (run / run_dir.REPORT).write_text((run / run_dir.REPORT).read_text().replace("0.5", "0.6"))
    assert state(run)[0] == "damaged"
    (run / run_dir.MANIFEST).write_text("{")
    assert state(run)[0] == "damaged"
    assert listing.find(tmp_path)[0].name == "run", "damage hides nothing"


def test_a_group_is_one_entry(tmp_path: Path) -> None:
    there = make_group(tmp_path / "group", ["seed0", "seed1", "seed2"], 2)
    assert state(there) == ("interrupted", "2 of 3 runs")
    assert [m.state for m in listing.members(there)] == ["finished", "finished", "waiting"]
    make_run(there / "seed2")
    io.write_json(there / "seed2" / run_dir.NONFINITE, {"what": "the loss", "step": 7})
    run_dir.write_result(there, {"test_accuracy": 0.75}, run_dir.SUMMARY)
    entry = listing.describe(there)
    assert (entry.state, entry.about) == ("finished", "2 of 3 runs, 1 failed")
    assert (entry.members, entry.test_accuracy) == (3, 0.75)
    assert entry.bytes == sum(map(len, contents(there).values()))


def test_a_group_with_run_names_outside_its_folder_is_damaged(tmp_path: Path) -> None:
    for name in ("..", "../other", "/tmp", ""):
        assert state(make_group(tmp_path / "group", [name], 0))[0] == "damaged"


def test_a_run_of_another_format_is_shown_and_may_be_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "SHA256SUMS").unlink()
    values = json.loads((run / run_dir.MANIFEST).read_text())
    io.write_json(run / run_dir.MANIFEST, {**values, "format": 2, "seal": "0" * 64})
    (entry,) = listing.find(tmp_path)
    assert entry.state == "damaged"
    assert "is of format 2, and this fcifar reads format 3" in entry.about
    assert "\n" not in entry.about
    listing.remove(run)
    assert not run.exists()


def test_names_and_paths_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = make_run(tmp_path / "runs/one"), make_run(tmp_path / "elsewhere")
    root = Path("runs")
    assert listing.locate(Path("one"), root).resolve() == run
    assert listing.locate(Path("runs/one"), root).resolve() == run
    assert listing.locate(Path("elsewhere"), root).resolve() == other
    with pytest.raises(UsageError, match="did you mean 'one'"):
        listing.locate(Path("onn"), root)
    with pytest.raises(UsageError, match=r"no run of that name in runs; .* such as one$"):
        listing.locate(Path("nope"), root)
    with pytest.raises(UsageError, match="no run of that name in empty; fcifar train makes one"):
        listing.locate(Path("one"), Path("empty"))
    with pytest.raises(UsageError, match="runs is not a run directory"):
        listing.describe(root)


# Where runs go ------------------------------------------------------------------------------------


def test_the_folder_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FCIFAR_RUNS", raising=False)
    assert run_dir.runs_root() == Path("runs")
    monkeypatch.setenv("FCIFAR_RUNS", "/some/where")
    assert run_dir.runs_root() == Path("/some/where")
    assert run_dir.runs_root(Path("here")) == Path("here")
    monkeypatch.setenv("FCIFAR_RUNS", "")
    assert run_dir.runs_root() == Path("runs")
    monkeypatch.setenv("FCIFAR_RUNS", "runs\udcff")
    with pytest.raises(UsageError, match=r"FCIFAR_RUNS is .*not UTF-8"):
        run_dir.runs_root()


# Removing -----------------------------------------------------------------------------------------


def test_a_run_is_removed_and_nothing_that_it_links_to(tmp_path: Path) -> None:
    run, outside = make_run(tmp_path / "runs/run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("here")
    (run / "plots").symlink_to(outside)
    (run / "file").symlink_to(outside / "precious")
    listing.remove(run)
    assert list((tmp_path / "runs").iterdir()) == []
    assert (outside / "precious").read_text() == "here"


def test_a_group_is_removed_as_a_whole(tmp_path: Path) -> None:
    there = make_group(tmp_path / "group", ["seed0", "seed1"], 2)
    with pytest.raises(UsageError, match=r"is one run of the group .*; remove the group"):
        listing.remove(there / "seed0")
    assert (there / "seed0").is_dir()
    listing.remove(there)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/run")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "folder").mkdir()
    for name, content in (("web", '{"name": "an app"}'), ("list", "[]"), ("half", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    before = contents(tmp_path)
    for name, message in (
        ("link", "is a link, and is not followed"),
        ("folder", "is not a run directory"),
        ("runs", "is not a run directory"),
        ("nowhere", "is not a run directory"),
        ("web", "was not written by fcifar, or is damaged"),
        ("list", "was not written by fcifar, or is damaged"),
        ("half", "was not written by fcifar, or is damaged"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            listing.remove(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_the_current_folder_is_not_removed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"\. has no name of its own; give the path of run"):
        listing.remove(Path())
    assert (tmp_path / "run/manifest.json").exists()


@pytest.mark.parametrize("held", ["", "seed1"])
def test_a_running_run_is_not_removed(tmp_path: Path, held: str) -> None:
    there = make_group(tmp_path / "group", ["seed0", "seed1"], 2)
    with FileLock(there / held / io.LOCK), pytest.raises(UsageError, match="is training into"):
        listing.remove(there)
    assert (there / "seed1" / run_dir.REPORT).exists()
    listing.remove(there)
    assert not there.exists()


@pytest.mark.skipif(os.name == "nt" or not os.geteuid(), reason="this user may remove everything")
def test_a_failed_removal_says_what_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/run")
    run.parent.chmod(0o500)
    try:
        with pytest.raises(ExternalError, match=r"cannot remove .*; what is left is in"):
            listing.remove(run)
    finally:
        run.parent.chmod(0o700)
    assert json.loads((run / run_dir.MANIFEST).read_text())["recipe"] == RECIPE
