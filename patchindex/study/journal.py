"""`Journal`: the finished units of a long study on disk, so that an interrupted study continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from patchindex.errors import InputError, Option, OutputExistsError

__all__ = ["Journal"]


class Journal:
    """A file of JSON lines: the settings of a study, then one line per finished unit.

    Parameters
    ----------
    path : Path, optional
        The file; without it, units are kept in memory only.
    settings : dict
        JSON data. A journal of other settings is refused.
    resume : bool
        Continue an existing file.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        When the file exists and neither `resume` nor `overwrite` is given, or its settings differ.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "units.jsonl"
    >>> Journal(path, {"n": 2}).add((1, 0), {"error": 0.5})
    >>> Journal(path, {"n": 2}, resume=True).units
    {(1, 0): {'error': 0.5}}
    """

    def __init__(
        self, path: Path | None, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.path = path
        self.units: dict[tuple[int, ...], dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings, default=str))
        if path is None:
            return
        if path.exists() and resume:
            self._read(path, settings)
            return
        if path.exists() and not overwrite:
            raise OutputExistsError(
                "has the units of an unfinished run",
                where=path,
                remedy=["continue with ", Option("resume", True), ", or give ", Option("overwrite", True)],
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings}) + "\n")

    def _read(self, path: Path, settings: dict[str, Any]) -> None:
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1  # a line that was cut off by a kill is dropped
        lines = [json.loads(line) for line in whole[:end].splitlines()]
        before = lines[0]["settings"] if lines else {}
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"the unfinished run has {name} = {before.get(name)!r}, not {settings.get(name)!r}",
                    where=path,
                    remedy=["give the same settings, or ", Option("overwrite", True)],
                )
        self.units = {tuple(line["unit"]): line["values"] for line in lines[1:]}
        if end < len(whole):
            with path.open("r+b") as file:
                file.truncate(end)

    def add(self, unit: tuple[int, ...], values: dict[str, Any]) -> None:
        """Keep the values of a finished unit, JSON data."""
        self.units[unit] = values
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"unit": unit, "values": values}) + "\n")

    def remove(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
