"""The installed package: lazy names, and imports from any folder."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import patchindex as pi

ROOT = Path(__file__).parents[1]


def python(*args, cwd):
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_patchindex_imports_no_heavy_module(tmp_path):
    code = "import sys, patchindex; print({'numpy', 'torch', 'faiss', 'numba', 'zarr'} & {*sys.modules})"
    assert python("-c", code, cwd=tmp_path) == "set()"


def test_faiss_is_imported_on_first_use_after_torch(tmp_path):
    code = """
import sys, patchindex
patchindex.open_index, patchindex.ScoreMachine, patchindex.sample
assert "torch" in sys.modules and "faiss" not in sys.modules
from patchindex.runtime import require_faiss
print(require_faiss().__name__)
"""
    assert python("-c", code, cwd=tmp_path) == "faiss"


def test_all_public_names_exist():
    assert set(pi.__all__) <= set(dir(pi))
    assert all(getattr(pi, name) is not None for name in [*pi.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        pi.no_such_name  # noqa: B018


def test_type_checkers_see_the_names_that_exist_at_run_time():
    tree = ast.parse(Path(pi.__file__).read_text())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    typed = {alias.name: node.module for node in imports for alias in node.names}
    lazy = {name: pi._MODULES.get(name, "patchindex") for name in pi.__all__}
    assert {name: typed[name] for name in pi.__all__} == lazy


def test_python_in_the_parent_folder_of_a_clone_imports_the_package(tmp_path):
    (tmp_path / "patchindex").symlink_to(ROOT)
    code = "import patchindex; print(patchindex.__file__, patchindex.open_index.__module__)"
    file, module = python("-c", code, cwd=tmp_path).split()
    assert Path(file).samefile(ROOT / "patchindex" / "__init__.py")
    assert module == "patchindex.index.patch_index"
    assert python("-m", "patchindex", "--version", cwd=tmp_path).endswith(f"version {pi.__version__}")
