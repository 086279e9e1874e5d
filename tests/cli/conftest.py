"""The command line, called in a folder of its own."""

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from fcifar import cli
from tests.helpers.commands import Outcome


@pytest.fixture(scope="session", autouse=True)
def _one_command() -> Iterator[None]:
    """The command with its 30 subcommands is made once, in place of each time it is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_look_for_plugins() -> Iterator[None]:
    """The files of all installed packages are read once for each ``sys.path``."""
    find = importlib.metadata.entry_points

    @functools.cache
    def found(_: tuple[str, ...], **chosen: str) -> importlib.metadata.EntryPoints:
        return find(**chosen)

    with pytest.MonkeyPatch.context() as patch:
        look = "importlib.metadata.entry_points"
        patch.setattr(look, lambda **chosen: found(tuple(sys.path), **chosen))
        yield


@pytest.fixture(autouse=True)
def _few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a run take two seconds: they are drawn in tests marked ``figures`` only."""
    if "figures" not in request.keywords:
        for name in ("run", "group", "evaluation"):
            monkeypatch.setattr(f"fcifar.report.draw.{name}", lambda *_, **__: None)


@pytest.fixture
def fcifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Outcome]:
    """``fcifar("train", "--seed", "1")`` 80 columns wide, with the data sets of ``data/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fcifar", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Outcome(int(exit_.value.code or 0), *capsys.readouterr())

    return run
