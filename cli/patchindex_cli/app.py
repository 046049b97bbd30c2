"""The command group: it turns each error into one line on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import click

from patchindex.errors import Option, PatchIndexError, PatchIndexWarning, printable

from .append import append
from .build import build
from .calibrate import calibrate
from .compare import compare, compare_table
from .explain import explain
from .info import info
from .originality import originality
from .output import echo
from .sample import sample
from .study import study
from .train import train
from .tune import tune
from .verify import verify


class _Group(click.Group):
    """A group that turns errors into one line on stderr and an exit code."""

    running: click.Command | None = None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, and end the process with the exit code."""
        code, message = 0, ""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names that the encoding does not have
        try:
            with warnings.catch_warnings(), _interrupted_by_sigterm():
                self._print_warnings()
                code = super().main(*args, **{**kwargs, "standalone_mode": False}) or 0
        except click.exceptions.NoArgsIsHelpError as error:
            echo(error.format_message())
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "patchindex"
            code, message = 2, f"{error.format_message().rstrip('.')}; see {command} --help"
        except PatchIndexError as error:
            code, message = error.exit_code, error.describe(self._spell)
        except (click.Abort, KeyboardInterrupt):
            code, message = 1, "interrupted"
        except (MemoryError, RuntimeError) as error:
            if not _is_short_of_memory(error):
                raise
            remedy = "use a smaller batch or smaller options"
            code, message = 1, f"not enough memory ({_message_of(error)}); {remedy}"
        except OSError as error:  # a full disk, a read-only folder: the work failed
            where = f"{error.filename}: " if error.filename else ""
            code, message = 1, f"{where}{error.strerror or error}"
        if message:
            echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(code)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Remember the running command, whose flags errors name."""
        found = super().resolve_command(ctx, args)
        self.running = found[1]
        return found

    def _print_warnings(self) -> None:
        """Print each warning of the package once, as one line on stderr."""
        warnings.simplefilter("always", PatchIndexWarning)
        others, printed = warnings.showwarning, set()

        def show(message: Warning | str, *where: Any, **options: Any) -> None:
            if not isinstance(message, PatchIndexWarning):
                others(printable(message), *where, **options)
            elif (text := message.describe(self._spell)) not in printed:
                printed.add(text)
                echo(f"Warning: {text}", err=True)

        warnings.showwarning = show

    def _spell(self, option: Option) -> str:
        """Write a Python parameter as a flag, `overwrite=True` as `--overwrite`.

        A flag of another command has the name of the command before it; an option of an estimator or of a
        denoiser has `--estimator` or `--machine` before it.
        """
        running = self.running
        name = option.name.lower()
        others = [command for command in self.commands.values() if command is not running]
        for command in [running, *others] if running else others:
            flag = f"--{name.replace('_', '-')}"
            parameter = next((p for p in command.params if p.name == name or flag in p.opts), None)
            if parameter is None:
                continue
            if isinstance(parameter, click.Argument):
                return name.upper() if command is running else str(option)
            flag = parameter.opts[-1] if command is running else f"{command.name} {parameter.opts[-1]}"
            return flag if option.value is None or option.value is True else f"{flag} {option.value}"
        if running is not None:
            for parameter in running.params:
                if name in _options_inside(str(parameter.name)):
                    flag = parameter.opts[-1]
                    inside = f"{name}={str(option.value).lower()} in {flag}"
                    return f"{flag}: {name}" if option.value is None else inside
        return str(option)


def _is_short_of_memory(error: Exception) -> bool:
    """Return True for an allocation that Python, NumPy or torch was refused."""
    # torch has a type of error for CUDA and XPU only.
    is_torch = _is_of_device(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch


def _is_of_device(error: Exception) -> bool:
    """Return True for an allocation on a device that torch was refused."""
    if "torch" not in sys.modules:  # which takes seconds to import
        return False
    from patchindex.devices import is_out_of_memory

    return is_out_of_memory(error)


def _message_of(error: Exception) -> str:
    """Return the message of an error for lack of memory; torch's is long for a device."""
    if not _is_of_device(error):
        return str(error)
    from patchindex.devices import out_of_memory

    return out_of_memory(error)


def _options_inside(parameter: str) -> set[str]:
    """Return the options that the value of a parameter can give, as in `--estimator topk:probes=8`."""
    if parameter in ("estimator", "estimators"):
        from patchindex.estimators import EstimatorOptions

        return {*EstimatorOptions.__annotations__}
    if parameter in ("machine", "machines"):
        from patchindex.denoisers import DENOISERS
        from patchindex.options import plain_options

        return {option for factory in DENOISERS.values() for option in plain_options(factory)}
    return set()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """End a block by SIGTERM as by Ctrl-C: files are closed, and temporary folders removed."""
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="patchindex", prog_name="patchindex", help="Print the version.")
def main() -> None:
    """Draw images with an analytic diffusion model: no network, only training images.

    `build` writes a store: the training images and, for each locality scale (a patch width in pixels), an
    index of all patches. `sample` draws images from a store with the score machines of Kamb & Ganguli
    (arXiv 2412.20292).

    \b
    Exit codes: 0 done, 1 the work failed, 2 bad input.

    \b
    Examples:
      patchindex build data/fashion_mnist_6k.npz -o fashion.zarr --limit 1500 \\
          --locality fashion-mnist-resnet-zeros --resize-locality
      patchindex sample fashion.zarr -n 16 -o samples
    """


COMMANDS = (
    *(build, append, tune, sample, info, verify, study, train, calibrate),
    *(compare, compare_table, originality, explain),
)
for command in COMMANDS:
    main.add_command(command)
