"""The prose of the package and its pages: plain habits, and no name that was replaced."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FILES = sorted([*(ROOT / "fcifar").rglob("*.py"), *(ROOT / "fcifar").rglob("*.html"), *PAGES])
HABITS = {
    "a person for code": r"\b([Nn]obody|[Ww]hoever|[Ss]omebody)\b",
    '"is no X" for "is not an X"': r"(?<![Tt]here )\b[Ii]s no (?!more\b)[a-z]+",
    "a word for another": r"\b([Pp]ictures?|asked|but for|laid out|doubts|yardstick)\b",
    "a name that was replaced": r"\b(UserError|WorldError|[Cc]ontenders?|[Cc]ontestants?|Wishes"
    r"|[Yy]ardsticks?|[Ll]ockstep|Safeguards|made_up|clocks|sittings?)\b",
}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_the_prose_is_plain(path: Path) -> None:
    text = path.read_text()
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {habit}: {match[0]!r}"
        for habit, pattern in HABITS.items()
        for match in re.finditer(pattern, text)
    ]
    assert not found


def test_no_file_has_a_name_that_was_replaced() -> None:
    replaced = re.compile(
        "driving|leading|following|together|sharing|ranks|stepping|finishing|saving|program"
        "|session|many|lockstep|group|selection|interrupt|places|trained|integrity|differences"
        "|removing|jsonfiles|yardsticks|comparison|intervals|variance|forward|making|trying"
        "|drawing|factories|pairs|official|known|pictures|importing|fitting|run_facts|about"
        "|extensions|prepare"
    )
    files = (ROOT / "fcifar").rglob("*.py")
    assert not [path.name for path in files if replaced.fullmatch(path.stem)]
