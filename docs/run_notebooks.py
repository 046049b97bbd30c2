"""Run the notebooks of the documentation in place, and store their outputs.

    python docs/run_notebooks.py                                   # all notebooks
    python docs/run_notebooks.py docs/notebooks/your-data.ipynb    # some of them

An error or a warning in a cell ends the script with exit code 1, and the notebook stays as it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parent / "notebooks"
CELL_SECONDS = 600


def run(path: Path) -> str | None:
    """Run a notebook in its own folder, and write it; return the first error or warning, if there is one."""
    notebook = nbformat.read(path, as_version=4)
    # Times of execution would change the file with every run.
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # the kernel has a local port
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return str(error)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                return f"{cell.source}\n{output.text}"
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow shows a picture in both formats
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
    return None


def main(names: Sequence[str]) -> int:
    """Run notebooks, all by default; return the exit code."""
    failed = 0
    for path in [Path(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.perf_counter()
        problem = run(path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
        if problem is not None:
            print(problem, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
