"""The code in README and docs runs, their commands parse, and their links lead somewhere."""

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from fcifar import cli
from fcifar.analysis import score_tables
from fcifar.errors import UsageError
from tests.helpers.pages import FENCE, PAGES, README, ROOT, after_fcifar, blocks, commands, name_of

# Options that act as soon as they are parsed.
ACTING = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
MISUSE = typer.BadParameter.__mro__[2]  # what typer raises for any wrong word


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_code_is_overlooked(page: Path) -> None:
    """By another name of a language, or an indented fence."""
    text = page.read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))
    languages = {match[1] for match in FENCE.finditer(text)}
    assert languages <= {"python", "sh", "", "text", "json", "toml"}


# Code --------------------------------------------------------------------------------------------


def run(page: Path) -> list[dict[str, Any]]:
    """Execute a page's blocks one after another; what the names mean after each of them."""
    module = types.ModuleType(page.stem.replace("-", "_"))
    names = vars(module)
    sys.modules[module.__name__] = module  # where torch 2.11 looks for it
    after = []
    for block in blocks(page, "python"):
        # Moved down, so that a traceback has the line of the page.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(page), "exec"), names)
        after.append(dict(names))
    del sys.modules[module.__name__]
    return after


@pytest.fixture
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code may write where it is, and draw from torch's generator if it seeds that."""
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def pages_with_code() -> list:
    """Those that compile are slow."""
    return [
        pytest.param(
            page,
            marks=[pytest.mark.slow] if any("compile_step" in b.text for b in code) else [],
        )
        for page in PAGES[1:]
        if (code := blocks(page, "python"))
    ]


@pytest.mark.usefixtures("_in_a_folder")
@pytest.mark.parametrize("page", pages_with_code(), ids=name_of)
def test_the_code_of_a_page_runs(page: Path, capsys: pytest.CaptureFixture) -> None:
    run(page)
    assert not capsys.readouterr().out, "a page asserts, for what is printed nobody compares"


@pytest.mark.slow
@pytest.mark.usefixtures("_in_a_folder")
def test_the_code_of_the_readme_runs() -> None:
    step, own = run(README)
    assert (step["state"].step, step["metrics"].count) == (2, 4)
    logits, _ = own["model"].apply(own["variables"], torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert len(blocks(README, "python")[-1].text.splitlines()) < 20


# Commands ----------------------------------------------------------------------------------------


def lines(page: Path) -> list[tuple[int, list[str]]]:
    """Line numbers, and the words after ``fcifar``."""
    found = [command for block in blocks(page, "sh") for command in commands(block)]
    return [(line, words) for line, all_ in found if (words := after_fcifar(all_)) is not None]


def parse(words: list[str]) -> None:
    """Raise what the command line raises for words that it does not take; nothing is done."""
    if ACTING.intersection(words):
        return
    command: Any = typer.main.get_command(cli.app)
    context = None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not hasattr(command, "commands"):
            return
        _, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )


@pytest.mark.parametrize(
    "wrong", ["trian", "train --no-such-option", "train --seed one", "data nothing", "eval"]
)
def test_wrong_words_are_noticed(wrong: str) -> None:
    with pytest.raises(MISUSE):
        parse(wrong.split())


@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=name_of)
def test_the_commands_of_a_page_are_known(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcifar.runs.listing.locate", lambda path, root: path)  # RUN is not here
    for number, words in lines(page):
        try:
            parse(words)
        except (MISUSE, UsageError) as error:
            pytest.fail(f"{name_of(page)}:{number}: fcifar {shlex.join(words)}: {error}")


def test_every_column_of_a_table_is_explained() -> None:
    page = (ROOT / "docs/files.md").read_text()
    for column in (*score_tables.OF_ONE, *score_tables.OF_SEVERAL):
        assert f"`{column}`" in page, column


# Links -------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "code", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead, as GitHub names its headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.add(f"{slug}-{again}" if again else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{name_of(page)}: {target}"
        assert goal.is_relative_to(ROOT), f"{name_of(page)}: {target} is outside the project"
        assert not anchor or anchor in anchors(goal), f"{name_of(page)}: {target}"
