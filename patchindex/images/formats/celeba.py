"""CelebA as it is distributed: aligned faces, a partition into three splits, and forty attributes.

The folder may be laid out as its authors do (`Img`, `Eval`, `Anno`), as torchvision does, or as on Kaggle
(.csv for .txt); the faces are in a folder `img_align_celeba` or in `img_align_celeba.zip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError, Option
from patchindex.images.files import Files, files_at
from patchindex.images.format import Format, Options
from patchindex.images.formats.folder import FolderSource
from patchindex.images.source import ImageSource
from patchindex.images.untrusted import read_text

__all__ = ["FORMAT", "SPLITS"]

SPLITS = {"train": 0, "valid": 1, "test": 2}
PARTS = {f"{part}{ending}": part for part in SPLITS.values() for ending in ("", ".0")}  # as files spell them
FACES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition", "list_attr_celeba"
FOLDERS = ("", "Img", "Eval", "Anno", "img_align_celeba")
FLAGS = {
    **dict.fromkeys(("1", "+1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("-1", "0", "-1.0", "0.0", "false", "no"), False),
}
LARGEST_LIST = 1 << 28  # bytes; the list of attributes has 27 MB
MOST_ATTRIBUTES = 10  # every combination of attributes gets a label name


def matches(path: Path) -> bool:
    """Return whether a folder holds the faces and a list of CelebA."""
    return path.is_dir() and bool(_faces(path)) and any(_find(path, name) for name in (PARTITION, ATTRIBUTES))


def open_celeba(path: Path, options: Options) -> ImageSource:
    """Open the faces of a split, by default the training split, sorted by number.

    With labels from "attributes", each attribute is one bit of the label, the first the least significant. A
    listed face that is missing is an error; with `options.skip_bad` it counts as skipped.
    """
    attributes = options.labels.attributes
    if len(attributes) > MOST_ATTRIBUTES:
        raise InputError(
            f"{len(attributes)} attributes are too many",
            parameter="labels",
            remedy=f"give at most {MOST_ATTRIBUTES}",
        )
    for faces in _faces(path):
        files = files_at(faces)
        name_of = _by_base(files)
        if name_of:
            break
    wanted = _faces_of_split(path, options.split, name_of)
    present = np.array([base in name_of for base in wanted], bool)
    absent = [base for base in wanted if base not in name_of]
    if absent and not options.skip_bad:
        raise InputError(
            f"{len(absent)} of the {len(wanted)} listed faces are missing, {absent[0]} first",
            where=faces,
            remedy=["unpack or download it again, or leave them out with ", Option("skip_bad", True)],
        )
    source = FolderSource(files, [name_of[base] for base in wanted if base in name_of], options)
    if absent:
        kept = slice(None) if source.kept is None else source.kept
        source.kept, source.skipped = np.flatnonzero(present)[kept], (*absent, *source.skipped)
    if attributes:
        source.labels, source.label_names = _labels(source.names, path, attributes)
    return source


FORMAT = Format(
    "folder of CelebA (img_align_celeba, list_eval_partition.txt, list_attr_celeba.txt)",
    matches,
    open_celeba,
    features=("split", "attributes", "pictures", "transform"),
)


def _find(path: Path, name: str) -> Path | None:
    """Return the path of a list."""
    found = (path / folder / f"{name}{suffix}" for suffix in (".txt", ".csv") for folder in FOLDERS)
    return next((each for each in found if each.exists()), None)


def _faces(path: Path) -> list[Path]:
    """Return the places of the faces, best first.

    Folders come first, because people often keep the archive that they unpacked.
    """
    folders = [path / folder / FACES for folder in reversed(FOLDERS)]
    archives = [path / folder / f"{FACES}.zip" for folder in FOLDERS]
    return [each for each in folders if each.is_dir()] + [each for each in archives if each.is_file()]


def _by_base(files: Files) -> dict[str, str]:
    """Return names of files by the name in the lists, which has no folders."""
    name_of: dict[str, str] = {}
    for name in files.names():
        other = name_of.setdefault(_base(name), name)
        if other != name:
            raise InputError(f"has a face twice, {other} and {name}", where=files.root, remedy="remove one")
    return name_of


def _faces_of_split(path: Path, split: str | None, name_of: Mapping[str, str]) -> list[str]:
    """Return the faces that belong to a split, present or not, sorted by number."""
    partition = _find(path, PARTITION)
    split = split or ("all" if partition is None else "train")
    if split not in (*SPLITS, "all"):
        known = ", ".join([*SPLITS, "all"])
        raise InputError(f"there is no {split!r}", parameter="split", remedy=f"use {known}")
    file = partition or (_find(path, ATTRIBUTES) if split == "all" else None)
    if file is None:
        raise InputError(
            f"has no {PARTITION}.txt, the list of splits", where=path, remedy=["use ", Option("split", "all")]
        )
    _, rows = _read_list(file)
    if split == "all":
        return sorted({row[0] for row in rows} | set(name_of))
    _check_listed(list(name_of), {row[0]: row for row in rows}, file)
    unknown = next((row for row in rows if row[1] not in PARTS), None)
    if unknown is not None:
        raise InputError(
            f"the split of {unknown[0]} is {unknown[1][:40]!r}", where=file, remedy="write 0, 1 or 2"
        )
    return sorted({row[0] for row in rows if PARTS[row[1]] == SPLITS[split]})


def _labels(names: Sequence[str], path: Path, wanted: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    file = _find(path, ATTRIBUTES)
    if file is None:
        raise InputError(f"has no {ATTRIBUTES}.txt", where=path, remedy="leave the attributes out")
    columns, rows = _read_list(file)
    unknown = [name for name in wanted if name not in columns]
    if unknown:
        raise InputError(
            f"has no attribute {unknown[0]}", where=file, remedy=f"use some of {', '.join(columns)}"
        )
    places = [1 + columns.index(name) for name in wanted]
    value_of = {
        row[0]: sum(_flag(row[i], row[0], file) << bit for bit, i in enumerate(places)) for row in rows
    }
    _check_listed(names, value_of, file)
    label_names = (
        ", ".join(name if value >> bit & 1 else f"not {name}" for bit, name in enumerate(wanted))
        for value in range(1 << len(wanted))
    )
    return np.array([value_of[_base(name)] for name in names], np.int64), tuple(label_names)


def _flag(text: str, face: str, file: Path) -> bool:
    """Return the value of an attribute."""
    try:
        return FLAGS[text.lower()]
    except KeyError:
        raise InputError(
            f"an attribute of {face} is {text[:40]!r}", where=file, remedy="write 1 or -1 for each attribute"
        ) from None


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _check_listed(names: Sequence[str], listed: Mapping[str, object], file: Path) -> None:
    missing = [name for name in names if _base(name) not in listed]
    if missing:
        raise InputError(
            f"does not list {len(missing)} of the images, {missing[0]} first",
            where=file,
            remedy="download it again",
        )


def _read_list(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, without the column of file names, and the rows."""
    lines = read_text(file, LARGEST_LIST, remedy="download it again").splitlines()
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit():
        rows = rows[1:]  # the number of rows
    is_head = bool(rows) and not rows[0][0].lower().endswith((".jpg", ".png"))
    columns = rows.pop(0) if is_head else []
    if columns and columns[0] == "image_id":
        columns = columns[1:]
    width = 1 + (len(columns) or 1)
    bad = next((row for row in rows if len(row) != width), None)
    if not rows or bad is not None:
        raise InputError(
            "is empty" if bad is None else f"has a line of {len(bad)} columns, expected {width}",
            where=file,
            remedy="download it again",
        )
    return columns, rows
