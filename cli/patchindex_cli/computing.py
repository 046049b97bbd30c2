"""`Computing`: a command with --config, --verbose and --quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .config import command_line, config_option, recorded_run, settings_table
from .output import add_row, echo, new_table, note, print_table, quiet

LOGGER = "patchindex"
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the number of -v

_verbose = click.Option(
    ["-v", "--verbose"],
    count=True,
    metavar="",
    help="Print the settings, and lines about the work, on stderr. -vv prints a line for each step.",
)
_quiet = click.Option(
    ["-q", "--quiet"],
    is_flag=True,
    help="Print errors only, and what --json and --dry-run ask for: no progress, summary or warnings.",
)


class Computing(click.Command):
    """A command that computes: it takes --config, --verbose and --quiet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [config_option, _verbose, _quiet]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command as loud as --verbose and --quiet ask for."""
        verbose, silent = ctx.params["verbose"], ctx.params["quiet"]
        if verbose and silent:
            raise click.UsageError("--quiet and --verbose do not go together", ctx)
        values = {name: value for name, value in ctx.params.items() if name not in ("verbose", "quiet")}
        with quiet(silent), logging_on_stderr(LEVELS[min(verbose, len(LEVELS) - 1)]):
            if verbose:
                _print_settings(ctx)
            elif ctx.default_map is not None:
                echo(command_line(ctx), err=True)
            assert self.callback is not None
            return ctx.invoke(self.callback, **values)


def _print_settings(ctx: click.Context) -> None:
    table = new_table(["option", "value", "from"])
    for column in table.columns:
        column.justify, column.overflow = "left", "fold"
    for row in settings_table(ctx):
        add_row(table, *row)
    print_table(table, err=True)
    if (run := recorded_run(ctx)) is not None:
        echo(f"repeats the run of {run.path}", err=True)


class _Lines(logging.Handler):
    """A handler that prints a line on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.name.removeprefix(f'{LOGGER}.')}: {record.getMessage()}")


@contextmanager
def logging_on_stderr(level: int) -> Iterator[None]:
    """Print the log of the library on stderr inside the block, from a level on."""
    logger, handler = logging.getLogger(LOGGER), _Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
