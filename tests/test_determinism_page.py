"""Each row of the table of determinism names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_row_names_a_test():
    text = (ROOT / "docs" / "determinism.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and "`test_" in line]
    assert len(rows) == 11
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        for name in re.findall(r"`(test_\w+)`", row):
            assert f"def {name}(" in tests, name
