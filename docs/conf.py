"""Settings of the documentation site; `make docs` builds the site with Sphinx."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Any

from sphinx.application import Sphinx

project = "patchindex"
author = "The patchindex authors"
copyright = "2026, the patchindex authors"
release = version = installed_version("patchindex")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []
html_theme = "furo"
html_title = "patchindex"
html_theme_options = {"source_directory": "docs/"}

nb_execution_mode = "off"  # `make notebooks` runs the notebooks; the site shows the stored outputs
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # headings are link targets, as on the pages of the repository
suppress_warnings = [
    "ref.python",  # a type such as "path" of a docstring is no reference to an attribute of this name
]

# Docstrings put code, and not a role of Sphinx, between single backticks.
default_role = "code"
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # the docstrings have types, shapes and ranges
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_xref_param_type = False

linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1).*"]


def mark_formulas(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Mark indented paragraphs of a docstring as literal blocks, as Markdown reads them."""
    found: list[str] = []
    indent = 0
    for i, line in enumerate(lines):
        mine = len(line) - len(line.lstrip())
        starts = line.strip() and i and not lines[i - 1].strip() and mine > indent
        if starts and not line.lstrip().startswith((">>>", "- ", "* ")):
            found += [" " * indent + ".. code-block:: text", ""]
        elif line.strip() and (not i or lines[i - 1].strip() or mine <= indent):
            indent = mine
        found.append(line)
    lines[:] = found


def setup(app: Sphinx) -> None:
    """Run `mark_formulas` before the extension that reads sections of docstrings."""
    app.connect("autodoc-process-docstring", mark_formulas, priority=100)
