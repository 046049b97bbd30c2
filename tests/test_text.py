"""Docstrings begin with an imperative or a noun, not with a word that hides the subject.

`python tests/test_text.py` prints the docstrings that do not, and how many there are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("patchindex", "cli", "benchmarks", "tests", "docs", "data")
AVOIDED = {"What", "How", "Which", "Whether", "Nothing", "Such", "That"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def avoided(path: Path) -> Iterator[str]:
    """Yield place and first line of the docstrings of a file that begin with an avoided word."""
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        first = re.match(r"\w+", text or "")
        if text and first and first[0] in AVOIDED:
            yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {text.splitlines()[0]}"


def all_avoided() -> list[str]:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return [line for file in files for line in avoided(file)]


def test_no_docstring_begins_with_an_avoided_word():
    found = all_avoided()
    assert not found, "\n".join(["docstrings begin with an avoided word:", *found])


def test_an_avoided_first_word_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "one.py").write_text('"""Module."""\ndef f():\n    """Whether it is."""\n')
    assert list(avoided(tmp_path / "one.py")) == ["one.py:3: Whether it is."]


if __name__ == "__main__":
    found = all_avoided()
    print("\n".join([*found, f"{len(found)} docstrings begin with one of {', '.join(sorted(AVOIDED))}"]))
