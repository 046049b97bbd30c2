"""CelebA as it is distributed: aligned faces, a partition into three splits, and forty attributes.

The folder may be laid out as its authors do (`Img`, `Eval`, `Anno`), as torchvision does, or as on Kaggle
(.csv for .txt); the faces in a folder `img_align_celeba` or in `img_align_celeba.zip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.files import Files, files_at
from patchindex.images.folder import open_files
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import unreadable

__all__ = ["DESCRIPTION", "SPLITS", "matches", "open"]

DESCRIPTION = "folder of CelebA (img_align_celeba, list_eval_partition.txt, list_attr_celeba.txt)"

SPLITS = {"train": 0, "valid": 1, "test": 2}
FACES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition", "list_attr_celeba"
FOLDERS = ("", "Img", "Eval", "Anno", "img_align_celeba")
MOST_ATTRIBUTES = 10  # at once: every combination of them has a name


def matches(path: Path) -> bool:
    """Whether the path is a folder with the faces and a list of CelebA in it."""
    lists = (_find(path, name, ".txt", ".csv") for name in (PARTITION, ATTRIBUTES))
    return path.is_dir() and bool(_faces(path)) and any(lists)


def open(path: Path, options: Options) -> ImageSource:
    """Open the faces of a split, by default those to train with, in order of their numbers.

    With `options.attributes` an image's label has a bit for each of them, the first one lowest: with
    ("Smiling", "Male") a smiling woman has label 1, and a smiling man 3.

    Raises
    ------
    InputError
        No partition for the split that is asked for, an unknown split or attribute or too many of these, a
        list that cannot be read or misses a face, a listed face that is not there (it counts as skipped with
        `options.skip_bad`) or is there twice, and what `open_files` raises for damaged ones.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / FACES).mkdir()
    ...     for i in (1, 2):
    ...         Image.new("RGB", (178, 218)).save(Path(folder) / FACES / f"{i:06d}.jpg")
    ...     lines = ("2", "Male Smiling", "000001.jpg -1 1", "000002.jpg 1 1")
    ...     _ = (Path(folder) / "list_attr_celeba.txt").write_text(chr(10).join(lines))
    ...     source = open(Path(folder), Options(attributes=("Smiling", "Male")))
    ...     source.shape, source.labels.tolist(), source.label_names[1:]
    ((2, 218, 178, 3), [1, 3], ('Smiling, not Male', 'not Smiling, Male', 'Smiling, Male'))
    """
    if len(options.attributes) > MOST_ATTRIBUTES:
        raise InputError(
            f"{len(options.attributes)} attributes are too many for labels",
            where="labels",
            remedy=f"give at most {MOST_ATTRIBUTES}",
        )
    for faces in _faces(path):
        files = files_at(faces)
        name_of = _by_base(files)
        if name_of:
            break
    wanted = _wanted(path, options.split, name_of)
    there = np.array([base in name_of for base in wanted], bool)
    absent = [base for base in wanted if base not in name_of]
    if absent and not options.skip_bad:
        raise InputError(
            f"{len(absent)} of the {len(wanted)} faces that are listed are not there, {absent[0]} first",
            where=faces,
            remedy="unpack or download it again, or leave them out with skip_bad=True",
        )
    source = open_files(files, [name_of[base] for base in wanted if base in name_of], options)
    source.name = str(path)
    if absent:
        kept = slice(None) if source.kept is None else source.kept
        source.kept, source.skipped = np.flatnonzero(there)[kept], (*absent, *source.skipped)
    if options.attributes:
        source.labels, source.label_names = _labels(source.names, path, options.attributes)
    return source


def _find(path: Path, name: str, *suffixes: str) -> Path | None:
    """Find a list."""
    found = (path / folder / f"{name}{suffix}" for suffix in suffixes for folder in FOLDERS)
    return next((each for each in found if each.exists()), None)


def _faces(path: Path) -> list[Path]:
    """Return where the faces may be, best first: in a folder, of two the inner one, or else in an archive.

    Whoever unpacks an archive often keeps it.
    """
    folders = [path / folder / FACES for folder in reversed(FOLDERS)]
    archives = [path / folder / f"{FACES}.zip" for folder in FOLDERS]
    return [each for each in folders if each.is_dir()] + [each for each in archives if each.is_file()]


def _by_base(files: Files) -> dict[str, str]:
    """Return the names of faces by that in the lists, which is without folders."""
    name_of: dict[str, str] = {}
    for name in files.names():
        other = name_of.setdefault(_base(name), name)
        if other != name:
            raise InputError(f"has a face twice, {other} and {name}", where=files.root, remedy="remove one")
    return name_of


def _wanted(path: Path, split: str | None, name_of: Mapping[str, str]) -> list[str]:
    """Return the faces of a split in order of their numbers, and whether or not they are there."""
    partition = _find(path, PARTITION, ".txt", ".csv")
    split = split or ("all" if partition is None else "train")
    if split not in (*SPLITS, "all"):
        raise InputError(f"there is no {split!r}", where="split", remedy=f"use {', '.join([*SPLITS, 'all'])}")
    where = partition if split != "all" else partition or _find(path, ATTRIBUTES, ".txt", ".csv")
    if where is None:
        raise InputError(
            f"has no {PARTITION}.txt, which says what is in a split", where=path, remedy="use split 'all'"
        )
    _, rows = _read(where)
    if split == "all":
        return sorted({row[0] for row in rows} | set(name_of))
    _check_all(list(name_of), {row[0]: row for row in rows}, where)
    return sorted({row[0] for row in rows if row[1] == str(SPLITS[split])})


def _labels(names: Sequence[str], path: Path, wanted: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    where = _find(path, ATTRIBUTES, ".txt", ".csv")
    if where is None:
        raise InputError(f"has no {ATTRIBUTES}.txt", where=path, remedy="leave the attributes out")
    head, rows = _read(where)
    unknown = [name for name in wanted if name not in head]
    if unknown:
        raise InputError(
            f"has no attribute {unknown[0]}", where=where, remedy=f"use some of {', '.join(head)}"
        )
    columns = [1 + head.index(name) for name in wanted]
    value_of = {row[0]: sum((row[c] == "1") << bit for bit, c in enumerate(columns)) for row in rows}
    _check_all(names, value_of, where)
    label_names = (
        ", ".join(name if value >> bit & 1 else f"not {name}" for bit, name in enumerate(wanted))
        for value in range(1 << len(wanted))
    )
    return np.array([value_of[_base(name)] for name in names], np.int64), tuple(label_names)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _check_all(names: Sequence[str], found: Mapping[str, object], where: Path) -> None:
    missing = [name for name in names if _base(name) not in found]
    if missing:
        raise InputError(
            f"says nothing of {len(missing)} images, {missing[0]} among them",
            where=where,
            remedy="download it again",
        )


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read a list: the names of its columns, without that of the file name, and its rows."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, "not a readable text file", where=path, remedy="download it again") from error
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    if rows and len(rows[0]) == 1 and rows[0][0].isdigit():
        rows = rows[1:]  # their number
    is_head = bool(rows) and not rows[0][0].lower().endswith((".jpg", ".png"))
    head = rows.pop(0) if is_head else []
    if head and head[0] == "image_id":
        head = head[1:]
    width = 1 + (len(head) or 1)
    bad = next((row for row in rows if len(row) != width), None)
    if not rows or bad is not None:
        raise InputError(
            "is empty" if bad is None else f"has a line of {len(bad)} columns, expected {width}",
            where=path,
            remedy="download it again",
        )
    return head, rows
