"""The command line: `patchindex build`, `sample` and `info`. Installs as the package `patchindex_cli`."""

from .app import main

__all__ = ["main"]
