"""The command line: `patchindex build`, `sample` and the others. Installs as the package `patchindex_cli`."""

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    """Import `main`, the command group, on first use, so that Ctrl-C during the import prints one line."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .app import main
    except KeyboardInterrupt:
        sys.exit("Error: interrupted")  # on stderr, with exit code 1
    return main
