"""The notebooks of the documentation run without an error or a warning; their outputs are fit to publish."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "run_notebooks.py"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NEEDED = ("nbclient", "ipykernel", "matplotlib", "scipy")
MISSING = [name for name in NEEDED if find_spec(name) is None]
LARGEST = 300_000  # bytes

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} of the extras docs, plots, studies: missing")
@each_notebook
def test_the_notebook_runs_without_an_error_or_a_warning(notebook, tmp_path):
    # The notebook finds the data as in the repository, and writes elsewhere.
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "data").symlink_to(ROOT / "data", target_is_directory=True)
    copy = shutil.copy(notebook, folder)
    before = set(tmp_path.rglob("*"))
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    found = subprocess.run(
        [sys.executable, SCRIPT, copy], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    after = {path for path in tmp_path.rglob("*") if "ipython" not in path.parts}
    assert after == before, "the notebook leaves files beside itself"


@each_notebook
def test_stored_outputs_are_complete_and_small_and_name_no_path_of_a_machine(notebook):
    assert notebook.stat().st_size < LARGEST
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert all(output.get("name") != "stderr" for output in cell["outputs"])
        texts = [
            "".join(output.get("text", []) or output.get("data", {}).get("text/plain", []))
            for output in cell["outputs"]
        ]
        absolute = [text for text in (*texts, "".join(cell["source"])) if re.search(r"(^|[\s'\"])/\w", text)]
        assert not absolute


def test_every_notebook_is_listed():
    page = (ROOT / "docs" / "notebooks" / "index.md").read_text()
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in page] == []
