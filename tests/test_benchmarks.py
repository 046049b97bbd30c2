"""Every benchmark script still fits the package: it imports, and says what it does."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LINUX_ONLY = {"gpu_instructions": "triton"}  # what a script imports that other systems lack


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_imports(script, monkeypatch):
    if script.stem in LINUX_ONLY:
        pytest.importorskip(LINUX_ONLY[script.stem])
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    assert runpy.run_path(str(script))["__doc__"]
    for name in set(sys.modules) - before:  # a later test may have a module of this name
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]
