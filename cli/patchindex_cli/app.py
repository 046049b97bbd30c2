"""The command group, and what happens to errors: one line on stderr and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import click

import patchindex
from patchindex.errors import Option, PatchIndexError

from .append import append
from .build import build
from .info import info
from .sample import sample
from .study import study
from .tune import tune
from .verify import verify

__all__ = ["main"]


# A parameter, or what to give for it: `overwrite=True`, `resize=32`, `pca_dims`.
_PARAMETER = re.compile(r"\b(?<!-)(?P<name>[a-z_]+)\b(?:=(?P<value>[^\s,;)]+))?")


class _Group(click.Group):
    """A group that turns errors into one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and end the process with the exit code."""
        code, message = 0, ""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False}) or 0
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "patchindex"
            code, message = 2, f"{error.format_message().rstrip('.')}; see {command} --help"
        except PatchIndexError as error:
            code, message = (
                error.exit_code,
                self._in_flags(error, kwargs.get("args") or [*args, *sys.argv[1:]]),
            )
        except (click.Abort, KeyboardInterrupt):
            code, message = 1, "interrupted"
        except MemoryError as error:
            code, message = 1, f"not enough memory ({error}); use fewer at a time, or smaller options"
        except OSError as error:  # a full disk, a read-only folder: the work failed
            where = f"{error.filename}: " if error.filename else ""
            code, message = 1, f"{where}{error.strerror or error}"
        if message:
            click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(code)

    def _in_flags(self, error: PatchIndexError, given: Sequence[Any]) -> str:
        """Say it with the flags of the command line, where the error has names of Python's parameters.

        A file that is called like one is among what was given.
        """
        flags = {
            option.name: option.opts[-1]
            for command in self.commands.values()
            for option in command.params
            if isinstance(option, click.Option) and option.opts[-1].startswith("--")
        }

        def spell(option: Option) -> str:
            name = flags.get(option.name.lower())
            if name is None:
                return str(option)
            return name if option.value is None or option.value is True else f"{name} {option.value}"

        if error.parameter is not None or not isinstance(error.remedy, str | None):
            return error.describe(spell)

        def flag(found: re.Match[str]) -> str:
            name, value = found["name"], found["value"]
            if name not in flags or (value is None and "_" not in name):
                return found[0]
            return flags[name] if value in (None, "True") else f"{flags[name]} {value}"

        remedy = error.remedy and _PARAMETER.sub(flag, error.remedy)
        where = str(error.where)
        if where not in map(str, given):
            where = flags.get(where.lower(), where)
        return str(PatchIndexError(error.what, where=error.where and where, remedy=remedy))


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


for command in (build, append, tune, sample, info, study, verify):
    main.add_command(command)
