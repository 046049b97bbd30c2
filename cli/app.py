"""The command group, and what happens to errors: one line on stderr and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import click

import patchindex
from patchindex.errors import PatchIndexError

from .build import build
from .info import info
from .sample import sample

__all__ = ["main"]


class _Group(click.Group):
    """A group that turns errors raised on purpose into one line and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PatchIndexError as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:  # a full disk, a read-only folder: the work failed
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"Error: {where}{error.strerror or error}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(patchindex.__version__, prog_name="patchindex")
def main() -> None:
    """Analytic diffusion models on real data sets.

    Build an index of every patch of a set of images, then draw images from it with the score machines of
    Kamb & Ganguli (arXiv 2412.20292), without a network.

    \b
    Exit codes: 0 done, 1 the work failed, 2 bad input.

    \b
    Examples:
      patchindex build data/fashion_mnist_6k.npz -o fashion.zarr --limit 1500 \\
          --locality fashion-mnist-resnet-zeros
      patchindex sample fashion.zarr -n 16 -o samples
    """


for command in (build, sample, info):
    main.add_command(command)
