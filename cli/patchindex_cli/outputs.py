"""The check of an output before any work: it can be written, and it is not among the inputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from patchindex.errors import InputError, Option, OutputExistsError

__all__ = ["check_output"]

ZARR = ("zarr.json", ".zgroup", ".zarray")
RESERVED = (".building", ".building.removed", ".replaced")  # of builds; see `patchindex.build.workdir`
ELSEWHERE = "give another folder for the output"


def check_output(
    output: Path,
    files: Sequence[str] = (),
    *,
    overwrite: bool = False,
    sources: Iterable[object] = (),
    inputs: Iterable[object] = (),
    own: str | None = None,
) -> None:
    """Refuse an output that cannot be written, has one of the files already, or is among the inputs.

    An output is refused inside a store, an unfinished build, another zarr folder or one of the `sources`,
    which are folders or files of images; and where it would replace one of the `inputs`. An input that is
    None, a URL, a name or a pattern is no file. `own` is `"store"` or `"run"` for a command that makes one,
    and may find it there already.
    """
    path = Path(os.path.realpath(output))
    _refuse_stores(output, path, own)
    for given, inside in (*((each, True) for each in sources), *((each, False) for each in inputs)):
        place = _place(given)
        if place is not None:
            _refuse_input(output, path, files, place, inside)
    existing = [name for name in files if os.path.exists(output / name)]
    if existing and not overwrite:
        raise OutputExistsError(
            f"already has {', '.join(existing)}",
            where=output,
            remedy=["use another folder, or ", Option("overwrite", True)],
        )
    if own is None or not os.path.isdir(output):
        _try_to_write(output)


def _refuse_stores(output: Path, path: Path, own: str | None) -> None:
    if path.name.endswith(RESERVED):
        raise InputError("is a name that builds use", where=output, remedy=ELSEWHERE)
    for folder in reversed(path.parents if own == "store" else (path, *path.parents)):
        if any(os.path.isfile(folder / name) for name in ZARR):
            kind = "zarr folder"
            if os.path.isfile(folder / "manifest.json"):
                kind = "store"
            elif os.path.isfile(folder / "settings.json"):
                kind = "unfinished build"
            raise InputError(f"lies in the {kind} {folder}", where=output, remedy=ELSEWHERE)
    if own != "run" and os.path.isfile(path / "run.json"):
        raise InputError("is a run of patchindex train", where=output, remedy=ELSEWHERE)


def _place(given: object) -> Path | None:
    """Return the file or folder of an input, if it is one."""
    text = str(given or "")
    if not text or "://" in text:
        return None
    return Path(os.path.realpath(text)) if os.path.exists(text) else None


def _refuse_input(output: Path, path: Path, files: Sequence[str], place: Path, inside: bool) -> None:
    if place == path or place in {path / name for name in files}:
        raise InputError(f"would be written over the input {place}", where=output, remedy=ELSEWHERE)
    if inside and place.is_dir() and place in path.parents:
        raise InputError(f"lies in the input {place}", where=output, remedy=ELSEWHERE)


def _try_to_write(output: Path) -> None:
    """Make the folder and a file in it, and remove again what was not there before."""
    if os.path.exists(output) and not os.path.isdir(output):
        raise InputError("is not a folder that you can write to", where=output, remedy="use another path")
    made = [folder for folder in (output, *output.parents) if not os.path.exists(folder)]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(
            f"is not a folder that you can write to ({error.strerror or error})",
            where=output,
            remedy="use another path",
        ) from error
    finally:
        for folder in made:
            if os.path.exists(folder):
                folder.rmdir()
