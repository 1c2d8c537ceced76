"""The documents as tests see them: Markdown files, their blocks of code, their links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    """A page's path in the repository, as the id of its tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [body for kind, body in FENCE.findall(path.read_text("utf-8")) if kind == language]


def command_lines(path: Path) -> list[str]:
    """Every line of the shell blocks of a page."""
    return [line for block in blocks(path, "sh") for line in block.splitlines() if line.strip()]
