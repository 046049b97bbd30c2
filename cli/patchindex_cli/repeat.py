"""Checks of a run that --config repeats: its inputs have not changed since the earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from patchindex.errors import InputError, Option

from .config import changes_options, recorded_run
from .output import echo

FILES = ("x_t", "start", "known", "mask")  # parameters whose arrays have fingerprints in the settings
STORE = {"fingerprint": "other images", "operating_curves": "another operating curve"}


def check_store(store: object, fingerprint: str, *, accept: bool) -> None:
    """Refuse another store than the store of the earlier run, if there is one."""
    _check("store", "store", store, fingerprint, accept)


def check_files(fingerprints: Mapping[str, str], *, accept: bool) -> None:
    """Refuse files that have changed since the earlier run."""
    ctx = click.get_current_context()
    for name in FILES:
        if f"{name}_fingerprint" in fingerprints:
            where = ctx.params[name]
            _check(name, f"{name}_fingerprint", where, fingerprints[f"{name}_fingerprint"], accept)


def check_settings(settings: Mapping[str, Any], *, accept: bool) -> None:
    """Refuse settings that have changed since the earlier run, as by an edited file of --locality.

    Options of the command line may change any setting.
    """
    ctx = click.get_current_context()
    run = recorded_run(ctx)
    if run is None or accept:
        return
    if changes_options(ctx):
        return
    before = _part(run.record, "settings")
    changed = sorted(
        name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)
    )
    if changed:
        raise InputError(
            f"the run had other settings: {', '.join(changed)}",
            where=run.path,
            remedy=["restore its files, or give ", Option("other_inputs", True)],
        )


def report_store(record: Mapping[str, Any], keys: Sequence[str] = tuple(STORE)) -> None:
    """Print what has changed in the store since the earlier run; `record` is its `store_record` now."""
    run = recorded_run(click.get_current_context())
    if run is None:
        return
    before = _part(run.record, "store")
    changed = [STORE[key] for key in keys if before.get(key, record[key]) != record[key]]
    if changed:
        echo(
            f"{record['path']}: has {' and '.join(changed)} than in {run.path}; results may differ", err=True
        )


def report_versions(versions: Mapping[str, Any]) -> None:
    """Print the versions that have changed since the earlier run, for images may then differ by rounding."""
    run = recorded_run(click.get_current_context())
    if run is None:
        return
    before = _part(run.record, "versions")
    changed = [
        f"{name} {versions[name]} (was {before[name]})"
        for name in versions.keys() & before.keys()
        if versions[name] != before[name]
    ]
    if changed:
        echo(f"other versions, images may differ by rounding: {', '.join(sorted(changed))}", err=True)


def _check(parameter: str, key: str, where: object, found: str, accept: bool) -> None:
    ctx = click.get_current_context()
    run = recorded_run(ctx)
    expected = None if run is None else _part(run.record, "settings").get(key)
    if run is None or found == expected:
        return
    what = f"differs from the input of {run.path} (fingerprint {found}, not {expected!s:.40})"
    if ctx.get_parameter_source(parameter) is click.core.ParameterSource.COMMANDLINE:
        echo(f"{where}: {what}", err=True)
    elif not accept:
        raise InputError(
            what,
            where=where,
            remedy=["restore it, give another on the command line, or accept it with ",
                    Option("other_inputs", True)],
        )  # fmt: skip


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}
