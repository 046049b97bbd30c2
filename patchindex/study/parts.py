"""`Parts`: finished results of a long study, kept image by image, so that an interrupted study resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from patchindex.build.workdir import hold_lock
from patchindex.errors import InputError, Option, OutputExistsError, StoreError
from patchindex.images.formats.npz import read_arrays
from patchindex.regular_files import read_regular
from patchindex.store.atomic import atomic_write
from patchindex.store.text_files import as_json

__all__ = ["PARTS", "Layout", "Parts", "compared_settings", "hold_folder"]

PARTS = "parts"  # folder of the finished results
LOCK = "parts.lock"  # held by the process that writes results
SETTINGS, MOST_SETTINGS = "settings.json", 1 << 25  # bytes
NUMBERS = "numbers"  # the array of a file with the numbers of its images
# Settings of a denoiser that change no result, or whose values are compared in another way: images by their
# fingerprint, and networks by what they return.
NOT_COMPARED = ("device", "name", "images")
REMEDY: Sequence[str | Option] = ["use the same settings, another folder, or ", Option("overwrite", True)]

Result = dict[str, np.ndarray]
Layout = Callable[[str, str], Mapping[str, tuple[int, ...]]]  # shapes of a result, by denoiser and kind


@contextmanager
def hold_folder(folder: Path | None) -> Iterator[None]:
    """Keep other processes from the folder of a study in the block; remove the folder if nothing is in it.

    Raises InputError while another process holds the folder.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    busy = InputError(
        "another process writes to this folder", where=folder, remedy="wait until it ends, or use another"
    )
    try:
        with hold_lock(folder / LOCK, busy):
            yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def compared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a denoiser that its results depend on."""
    return {name: value for name, value in settings.items() if name not in NOT_COMPARED}


class Parts:
    """Finished results by denoiser, kind and image, in memory and, with a folder, on disk.

    Parameters
    ----------
    folder : Path, optional
        The folder of the study; the results are in its sub-folder `parts`. One file holds the results of a
        batch, and is written atomically.
    settings : dict
        The settings that all results share, as plain data.
    layout : callable
        `layout(denoiser, kind)` returns the shape of each array of a result. Arrays are float32 or float64;
        NaN stands for a measure that does not apply, and an image has none.
    resume : bool
        Use the results that the folder has.
    overwrite : bool
        Delete the results that the folder has. With `resume`, results of other settings only.

    Raises
    ------
    OutputExistsError
        When the folder has results, and neither `resume` nor `overwrite` is given.
    InputError
        When the results in the folder have other settings, or none.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        layout: Layout,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._layout = layout
        self._folder = None if folder is None else folder / PARTS
        self._found: dict[tuple[str, str], dict[int, Result]] = {}
        self._checked: dict[str, Any] = {}  # settings of denoisers by name
        if self._folder is None:
            return
        has_results = any(self._folder.rglob("*.npz"))
        found = self._settings(self._folder) if has_results else None
        wanted = as_json(settings)
        if has_results and not overwrite:
            if found is None:
                raise InputError("has results without settings", where=self._folder, remedy=REMEDY)
            if not resume:
                raise OutputExistsError(
                    "already has results",
                    where=self._folder,
                    remedy=["continue with ", Option("resume", True), ", or use ", Option("overwrite", True)],
                )
            if found != wanted:
                raise InputError(
                    f"has results of other settings: {', '.join(_differences(found, wanted))}",
                    where=self._folder,
                    remedy=REMEDY,
                )
        if resume and found == wanted:
            return
        self._clear(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_settings(self._folder, wanted)

    @classmethod
    def of(cls, folder: Path, settings: dict[str, Any], layout: Layout) -> Parts:
        """Return the results of another study, to be read; refuse a folder with other settings or none.

        Another process may write to the folder: nothing is written or deleted here.
        """
        found, wanted = cls._settings(folder / PARTS), as_json(settings)
        if found is None:
            raise InputError("has no results", where=folder, remedy="give the folder of a comparison")
        if found != wanted:
            raise InputError(
                f"has results of other settings: {', '.join(_differences(found, wanted))}",
                where=folder / PARTS,
                remedy="use the same settings, or another folder",
            )
        parts = cls(None, settings, layout)
        parts._folder = folder / PARTS
        return parts

    def check(self, name: str, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        """Refuse results of a denoiser whose settings have changed; `overwrite` deletes them."""
        wanted = self._checked[name] = as_json(settings)
        if self._folder is None:
            return
        folder = self._folder / quote(name, safe="=,")
        found = self._settings(folder)
        if found is not None and found != wanted:
            if not overwrite:
                what = f"has results of {name} with other settings: {', '.join(_differences(found, wanted))}"
                raise InputError(what, where=self._folder, remedy=REMEDY)
            self._clear(folder)
        folder.mkdir(exist_ok=True)
        self._write_settings(folder, wanted)

    def reuse(self, other: Parts, name: str, kind: str, images: Iterable[int]) -> None:
        """Copy missing results of a denoiser from another study, if the denoiser has the same settings there.

        `check` has to be called for the denoiser before, and `of` made the other study.
        """
        assert other._folder is not None
        if other._settings(other._folder / quote(name, safe="=,")) != self._checked[name]:
            return
        missing = self.missing(name, kind, images)
        if known := sorted({*missing} - {*other.missing(name, kind, missing)}):
            self.add(name, kind, known, **other.get(name, kind, known))

    def any(self) -> bool:
        """Return whether there is a result."""
        on_disk = self._folder is not None and any(self._folder.rglob("*.npz"))
        return on_disk or any(self._found.values())

    def refuse(self, what: str, *, overwrite: bool, kind: str = "*", last: str = "") -> None:
        """Refuse the results of a kind, by default of all kinds, for a reason; `overwrite` deletes them.

        The results of the denoiser `last` are deleted last: they say what the results of others belong to.
        """
        if not overwrite:
            raise InputError(what, where=self._folder, remedy=REMEDY)
        self._found = {key: held for key, held in self._found.items() if kind not in ("*", key[1])}
        if self._folder is not None:
            paths = self._folder.rglob(f"{kind}.*.npz")
            for path in sorted(paths, key=lambda path: path.parent.name == quote(last, safe="=,")):
                path.unlink()

    def missing(self, name: str, kind: str, images: Iterable[int]) -> list[int]:
        """Return the numbers of the images without a result."""
        found = self._load(name, kind)
        return [image for image in images if image not in found]

    def add(self, name: str, kind: str, numbers: Sequence[int], /, **arrays: np.ndarray) -> None:
        """Keep the results of some images: arrays whose first axis goes over the images."""
        held = self._load(name, kind)
        for row, image in enumerate(numbers):
            held[image] = {key: array[row] for key, array in arrays.items()}
        if self._folder is not None:
            folder = self._folder / quote(name, safe="=,")
            folder.mkdir(exist_ok=True)
            with atomic_write(folder / f"{kind}.{numbers[0]:06d}.npz") as file:
                np.savez(file, **{NUMBERS: np.asarray(numbers, np.int64)}, **arrays)  # type: ignore[arg-type]

    def get(self, name: str, kind: str, images: Iterable[int]) -> Result:
        """Return the results of some images, stacked along a first axis."""
        found = self._load(name, kind)
        rows = [found[image] for image in images]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]} if rows else {}

    def _load(self, name: str, kind: str) -> dict[int, Result]:
        """Return the results of a denoiser and kind by image, read from the folder at the first call."""
        if (name, kind) in self._found:
            return self._found[name, kind]
        held: dict[int, Result] = {}
        if self._folder is not None:
            for path in sorted((self._folder / quote(name, safe="=,")).glob(f"{kind}.*.npz")):
                held |= self._read(path, self._layout(name, kind))
        self._found[name, kind] = held
        return held

    @staticmethod
    def _read(path: Path, layout: Mapping[str, tuple[int, ...]]) -> dict[int, Result]:
        """Return the results of a file by image; refuse arrays of other shapes than the layout's."""
        try:
            # Results are never packed: a small file would unpack to any size.
            arrays = read_arrays(path, required=NUMBERS, optional=[*layout], packed=False)
        except InputError as error:
            raise StoreError(f"is damaged ({error.what})", where=path, remedy="delete it") from None
        numbers = arrays.pop(NUMBERS)
        damage = None
        if numbers.dtype != np.int64 or numbers.ndim != 1:
            damage = "its images have no numbers"
        for key, shape in layout.items():
            found = arrays.get(key)
            if found is None or found.dtype not in (np.float32, np.float64):
                damage = f"it has no floats called {key}"
            elif found.shape != (*numbers.shape, *shape):
                damage = f"{key} has shape {found.shape}, not {(*numbers.shape, *shape)}"
            elif np.isinf(found).any() or (len(shape) > 1 and np.isnan(found).any()):
                damage = f"{key} is not finite"
        if damage is not None:
            raise StoreError(f"is damaged ({damage})", where=path, remedy="delete it")
        return {
            number: {key: array[row] for key, array in arrays.items()}
            for row, number in enumerate(numbers.tolist())
        }

    @staticmethod
    def _settings(folder: Path) -> Any:
        path = folder / SETTINGS
        if not path.exists():
            return None
        try:
            found = json.loads(read_regular(path, MOST_SETTINGS, follow_links=True))
        except (ValueError, OSError, RecursionError) as error:
            raise StoreError(
                f"is damaged ({error})", where=path, remedy=f"delete the folder {folder}"
            ) from None
        if not isinstance(found, dict):
            raise StoreError("has no settings", where=path, remedy=f"delete the folder {folder}")
        return found

    @staticmethod
    def _write_settings(folder: Path, settings: Any) -> None:
        with atomic_write(folder / SETTINGS) as file:
            file.write(json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n")

    @staticmethod
    def _clear(folder: Path) -> None:
        """Delete results. Settings go last: results without settings would be taken for the new ones."""
        for path in sorted(folder.rglob("*.npz")):
            path.unlink()
        for path in sorted(folder.rglob(SETTINGS), reverse=True):
            path.unlink()


def _differences(found: dict[str, Any], wanted: dict[str, Any], within: str = "") -> Iterator[str]:
    """Yield `name (was X, is Y)` for each setting that differs, `name.inner (...)` for those in a setting."""
    for name in sorted({*found, *wanted}):
        was, now = found.get(name), wanted.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{within}{name}.")
        elif was != now:
            yield f"{within}{name} (was {_short(was)}, is {_short(now)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
