"""README and docs as blocks of code and lines of commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """Code between fences."""

    language: str
    text: str
    line: int  # the number of its first line in the page


class Command(NamedTuple):
    """One of the commands of a line, which ``&&`` may divide."""

    line: int  # its number in the page
    words: list[str]


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(block: Block) -> list[Command]:
    """The commands of a block of sh, one after another, as a shell divides them."""
    found = []
    joined = block.text.replace("\\\n", "  ")
    for number, line in enumerate(joined.splitlines(), block.line):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("&|;"):
                words.append(word)
                continue
            if words:
                found.append(Command(number, words))
            words = []
    return found


def after_fcifar(words: list[str]) -> list[str] | None:
    """The words after ``fcifar``, if that is what a command runs: ``uv run fcifar`` does too."""
    for i, word in enumerate(words):
        if Path(word).name == "fcifar" and (i == 0 or words[i - 1] in ("run", "-m")):
            return words[i + 1 :]
    return None
