"""Every benchmark script still fits the package: it imports, and says what it does."""

from __future__ import annotations

import re
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


def test_the_page_of_benchmarks_is_its_template_with_outputs(monkeypatch):
    """Nobody has written a figure into the page by hand, at least not beside the template."""
    monkeypatch.syspath_prepend(str(FOLDER))
    pattern, last = "", 0
    page = runpy.run_path(str(FOLDER / "page.py"))
    template = page["TEMPLATE"].read_text()
    for block in page["RUN"].finditer(template):
        shown = "".join(f"    {line}\n" for line in block["commands"].splitlines())
        pattern += re.escape(template[last : block.start()] + shown)
        pattern += r"\n(```text\n(?:(?!```).)+```|\*Not run[^\n]*)\n"
        last = block.end()
    pattern = (pattern + re.escape(template[last:])).replace("MACHINE", r"[^\n]+", 1)
    found = re.fullmatch(pattern, page["PAGE"].read_text(), re.DOTALL)
    assert found, "run `make bench` again, or make equal changes in docs/benchmarks.md and benchmarks/page.md"


def test_the_page_runs_commands_and_keeps_outputs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    page = runpy.run_path(str(FOLDER / "page.py"))
    command = "python -c \"import sys; print('found', sys.argv[1])\" WORK/a"
    inputs = page["Inputs"](CIFAR10=None, AUTHORS=None, WORK=tmp_path)
    assert page["output_of"]("name", [command], inputs) == "found WORK/a\n"
    (kept,) = tmp_path.glob("name-*.txt")
    kept.write_text("kept\n")
    assert page["output_of"]("name", [command], inputs) == "kept\n"
    assert page["output_of"]("name", [command + "b"], inputs) == "found WORK/ab\n"
    with pytest.raises(SystemExit, match="exit code 3 of: python"):
        page["output_of"]("name", ['python -c "raise SystemExit(3)"'], inputs)
    assert inputs.missing("python benchmarks/exact.py CIFAR10 --work WORK") == ["CIFAR10"]
