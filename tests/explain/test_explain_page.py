"""The examples of docs/explain.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_examples_run(monkeypatch):
    text = (ROOT / "docs" / "explain.md").read_text()
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict = {}
    exec(blocks[0], found)
    printed = " ".join(re.search(r"    (Attribution\(.*?\))\n\n", text, re.DOTALL)[1].split())
    weight = float(re.search(r"patches: ([\d.]+) of", printed)[1])
    assert found["found"][1].weight[0] == pytest.approx(weight, abs=2e-3)
    assert repr(found["found"][1]).split(":")[0] == printed.split(":")[0]
    for block in blocks[1:]:
        exec(block, found)
    assert "Patches behind sample 0" in found["page"]
