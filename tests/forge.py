"""Forge stores: write a hostile value into one field, make all checksums right again, and use the store.

    python tests/forge.py CASES [--seed N] [--work FOLDER]

Each mutant is opened, verified, described and drawn from by every estimator, in a process of its own. The
outcome is `refused` (by a PatchIndexError), `right` (the picture of the exact score) or a fault: a signal, a
hang, a traceback, a wrong picture, or too much memory. The script prints the counts and every fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from forged_uses import bases, in_a_child, use
from numcodecs.zstd import Zstd

from patchindex.store import checksums
from patchindex.store.checksums import crc32c, image_block, read_checksummed, write_checksummed
from patchindex.store.raw import write_raw

NUMBERS = [-1, 0, 1, 2, 3, 1000, 2**31, 2**40, 2**62, 2**63, -(2**40), 10**30, 0.5, 1e30, -1e30, 1e300]
VALUES = [None, True, *NUMBERS, "", "x", "\x1b[2J", "\0", [], [1], [[]], {}, {"a": 1}, "uint8", "bbELS", "LS"]
FLOATS = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, -1.0, 0.0, 1.0, 5.0]
INTEGERS = [-1, 0, 1, 2, 2**31 - 1, 2**31, 2**40, -(2**40), 2**62, -(2**62)]

# What zarr and NumPy raise of metadata and chunks that a mutation has changed.
UNREADABLE = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)

Change = Callable[[Path, np.random.Generator], str]


def leaves(found: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in JSON data."""
    yield at
    entries = (
        found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    )
    for name, value in entries:
        yield from leaves(value, (*at, name))


def changed_json(found: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Return JSON data with one value changed or left out."""
    found = json.loads(json.dumps(found))
    paths = list(leaves(found))
    *way, last = paths[rng.integers(1, len(paths))] if len(paths) > 1 else (None,)
    holder = found
    for name in way:
        holder = holder[name]
    if last is None:
        return VALUES[rng.integers(len(VALUES))], "all"
    old = holder[last]
    number = type(old) in (int, float) and rng.random() < 0.6
    new = [old - 1, old + 1, 2 * old, -old, *NUMBERS] if number else VALUES
    if rng.random() < 0.1:
        del holder[last]
        return found, f"{[*way, last]} left out"
    holder[last] = new[rng.integers(len(new))]
    return found, f"{[*way, last]} = {holder[last]!r}"


def json_field(store: Path, rng: np.random.Generator) -> str:
    """Change a value in the metadata of a group or an array."""
    files = sorted(store.rglob("zarr.json"))
    groups = [file for file in files if file.parent == store or file.parent.parent.name == "scales"]
    file = (groups if rng.random() < 0.6 else files)[rng.integers(len(groups))]
    new, what = changed_json(json.loads(file.read_text()), rng)
    file.write_text(json.dumps(new))
    return f"{file.relative_to(store)}: {what}"


def checksummed_field(store: Path, rng: np.random.Generator) -> str:
    """Change a value in a file with its own checksum."""
    names = ("scales.json", "settings.json", "scales/k003/operating_curve.json")
    file = store / names[rng.integers(len(names))]
    new, what = changed_json(read_checksummed(file), rng)
    write_checksummed(file, new)
    return f"{file.relative_to(store)}: {what}"


def array(store: Path, rng: np.random.Generator) -> str:
    """Change entries, the shape or the dtype of an array."""
    every = [file.parent for file in sorted(store.rglob("zarr.json")) if (file.parent / "c").exists()]
    folders = [folder for folder in every if folder.name not in ("faiss", "images")]
    folder = folders[rng.integers(len(folders))]
    group = zarr.open_group(folder.parent, mode="r+")
    old = np.asarray(group[folder.name][:])  # type: ignore[index]
    new, what = old.copy(), int(rng.integers(7))
    flat, at = new.reshape(-1), int(rng.integers(old.size))
    most = 2 ** (8 * old.itemsize)  # of unsigned integers
    fit = [value for value in INTEGERS if old.dtype.kind == "i" or 0 <= value < most]
    values = FLOATS if old.dtype.kind == "f" else fit
    value = values[rng.integers(len(values))]
    if what == 0:
        new = old[: max(1, len(old) - 1)]
    elif what == 1:
        new = np.concatenate([old, old[-1:]])
    elif what == 2:
        new = old.astype(["int64", "float64", "uint8", "int32"][rng.integers(4)])
    elif what == 3:
        flat[:] = value
    elif what == 4 and old.size > 1:
        flat[at], flat[at - 1] = flat[at - 1], flat[at]
    else:
        flat[at] = value if rng.random() < 0.6 else flat[at] + value
    if folder.name.startswith("image_name") and new.size:  # raw arrays
        shutil.rmtree(folder)
        with write_raw(folder.parent, folder.name, new.dtype.name) as out:
            out.write(new)
    else:
        group.create_array(folder.name, data=np.ascontiguousarray(new), overwrite=True)
    return f"{folder.relative_to(store)}: change {what}, entry {at}, value {value}"


def faiss_file(store: Path, rng: np.random.Generator) -> str:
    """Change a field of the head, an id or a code, or the length."""
    file = store / "scales/k003/faiss/c/0"
    data, group = bytearray(file.read_bytes()[:-4]), zarr.open_group(store / "scales/k003", mode="r")
    lists, dims = (int(group.attrs[name]) for name in ("lists", "pca_dims"))  # type: ignore[arg-type]
    sizes = np.asarray(group["list_counts"][:]).sum(0)  # type: ignore[index]
    head = len(data) - int(sizes.sum()) * (dims + 8)
    begin = head + np.concatenate([[0], np.cumsum(sizes)]) * (dims + 8)
    c = int(rng.choice(np.flatnonzero(sizes)))
    ids = int(begin[c] + sizes[c] * dims)
    what = int(rng.integers(6))
    value = INTEGERS[rng.integers(len(INTEGERS))]
    if what == 0:
        data = data[: int(rng.integers(len(data)))] if rng.random() < 0.5 else data + bytes(8)
    elif what == 1:
        data[int(begin[c])] ^= 0xFF
    elif what == 2:
        struct.pack_into("<q", data, ids + 8 * int(rng.integers(sizes[c])), value)
    elif what == 3:  # two ids of one list change places, or are equal
        first, last = (struct.unpack_from("<q", data, ids + 8 * i)[0] for i in (0, int(sizes[c]) - 1))
        struct.pack_into("<q", data, ids, last)
        struct.pack_into("<q", data, ids + 8 * (int(sizes[c]) - 1), last if rng.random() < 0.5 else first)
    else:
        sizes_at = head - 8 * lists
        first = [0, 4, 8, 16, 24, 32, 33, 37, 45, 53, 57, 61, 69, 85, 86, 90]  # of the two indexes
        after = range(sizes_at - 28 - 9 - 8 * dims - 8 - 28 - 9, sizes_at, 4)  # from the direct map on
        at = int(rng.choice([*first, *after, sizes_at + 8 * int(rng.integers(lists))]))
        form = ["<q", "<i", "<b"][rng.integers(3)]
        low, high = -(2 ** (8 * struct.calcsize(form) - 1)), 2 ** (8 * struct.calcsize(form) - 1) - 1
        struct.pack_into(form, data, at, min(max(value, low), high))
        if rng.random() < 0.3:
            kinds = [b"ilod", b"ilmm", b"il00", b"iloa"]  # other files, and lists of other forms
            data[sizes_at - 32 : sizes_at - 28] = kinds[rng.integers(4)]
    file.write_bytes(bytes(data) + bytes(4))
    rewritten(store / "scales/k003/faiss", len(data))
    return f"faiss: change {what}, list {c}, value {value}"


def rewritten(folder: Path, length: int) -> None:
    """Give a raw array of one dimension another length."""
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, length)]
    (folder / "zarr.json").write_text(json.dumps(metadata))


def pixels(store: Path, rng: np.random.Generator) -> str:
    """Change an image: the codes are of other images then."""
    file = store / "images/c/0/0/0/0"
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data) - 4))
    data[at] ^= 0xFF
    file.write_bytes(data)
    return f"pixel {at}"


def chunk(store: Path, rng: np.random.Generator) -> str:
    """Replace a compressed chunk by a bomb, by nothing, or by other bytes."""
    files = [f for f in sorted(store.rglob("c/*")) + sorted(store.rglob("c/*/*")) if f.is_file()]
    files = [f for f in files if f.parts[-3] != "faiss" and "images" not in f.parts]
    file, what = files[rng.integers(len(files))], int(rng.integers(4))
    if what == 0:
        file.write_bytes(Zstd().encode(bytes(64 << 20)))
    elif what == 1:  # a frame that states 2^40 bytes
        file.write_bytes(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x03\0\0\0")
    elif what == 2:
        file.unlink()
    else:
        file.write_bytes(rng.bytes(int(rng.integers(200))))
    return f"{file.relative_to(store)}: change {what}"


def old_format(store: Path, rng: np.random.Generator) -> str:
    """Put an array of zarr format 2 in place of an array; its filter unpickles what it reads."""
    folder = store / ["labels", "source_ids", "scales/k003/centroids"][rng.integers(3)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    metadata = {"zarr_format": 2, "shape": [24], "chunks": [24], "dtype": "|O", "compressor": None}
    more = {"fill_value": None, "order": "C", "filters": [{"id": "pickle"}]}
    (folder / ".zarray").write_text(json.dumps(metadata | more))
    (folder / "0").write_bytes(b"cos\nsystem\n(S'touch RAN'\ntR.")
    return f"{folder.relative_to(store)}: zarr format 2"


def manifest(store: Path, rng: np.random.Generator) -> str:
    """Change an entry of a manifest, or its name."""
    folder = store / ["", "scales/k003"][rng.integers(2)]
    entries = read_checksummed(folder / "manifest.json")
    if rng.random() < 0.4:
        names = ["../x", "/etc/passwd", "a\0b", "\ud800", "c/../../x", "", "x" * 300]
        entries[names[rng.integers(len(names))]] = entries.pop(sorted(entries)[rng.integers(len(entries))])
        what = "a name"
    else:
        entries, what = changed_json(entries, rng)
    write_checksummed(folder / "manifest.json", entries)
    return f"manifest: {what}"


def file_kind(store: Path, rng: np.random.Generator) -> str:
    """Put a link, a FIFO, a socket or a folder in place of a file, or a link in place of a folder."""
    every = sorted(store.rglob("*"))
    path, what = every[rng.integers(len(every))], int(rng.integers(6))
    aside = store.with_name("aside")
    path.rename(aside)
    if what == 0:
        path.symlink_to(aside)
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to("/dev/zero")
    elif what == 3:
        path.mkdir()
    elif what == 4:
        with socket.socket(socket.AF_UNIX) as listener:
            before = Path.cwd()
            os.chdir(path.parent)  # the path of a socket must be short
            listener.bind(path.name)
            os.chdir(before)
    else:
        path.symlink_to(path.name)
    return f"{path.relative_to(store)}: kind {what}"


CHECKSUMMED: list[Change] = [
    *(json_field, json_field, checksummed_field, array, array, array, faiss_file, faiss_file),
    *(pixels, chunk, old_format),
]
AFTERWARDS: list[Change] = [manifest, file_kind]  # what these change has no checksum


def mend_checksums(store: Path) -> None:
    """Make all checksums right that can be: of lists, heads, images and files."""
    for raw in (store / "images", *store.glob("scales/*/faiss")):
        for file in (f for f in raw.rglob("0") if f.is_file()):
            data = file.read_bytes()[:-4]
            file.write_bytes(data + crc32c(data).to_bytes(4, "little"))
    images = next((f for f in (store / "images/c").rglob("0") if f.is_file()), None)
    try:
        group = zarr.open_group(store, mode="r+")
        data = np.asarray(group["images"][:])  # type: ignore[index]
        block = image_block(data.shape[1:3], data.shape[3])
        sums = [crc32c(data[i : i + block]) for i in range(0, len(data), block)]
        if len(sums) == len(group["image_checksums"][:]):  # type: ignore[index, arg-type]
            group.create_array("image_checksums", data=np.array(sums, np.uint32), overwrite=True)
        for folder in store.glob("scales/k*"):
            mend_checksums_of_scale(folder, images.read_bytes()[-4:][::-1].hex() if images else "")
    except UNREADABLE:  # the mutant keeps its other checksums
        pass
    for folder in (store, *store.glob("scales/k*")):
        checksums.write_manifest(folder)


def mend_checksums_of_scale(folder: Path, images: str) -> None:
    group = zarr.open_group(folder, mode="r+")
    data = (folder / "faiss/c/0").read_bytes()[:-4]
    sizes, dims = np.asarray(group["list_counts"][:]).sum(0), int(group["pca_components"].shape[0])  # type: ignore
    begin = len(data) - int(sizes.sum()) * (dims + 8)
    ends = begin + np.cumsum(sizes) * (dims + 8)
    sums = [crc32c(data[a:b]) for a, b in zip([begin, *ends[:-1]], ends, strict=True)]
    if len(sums) == len(group["list_checksums"][:]):  # type: ignore[index, arg-type]
        group.create_array("list_checksums", data=np.array(sums, np.uint32), overwrite=True)
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"] |= {"head_checksum": crc32c(data[:begin]), "images": images}
    (folder / "zarr.json").write_text(json.dumps(metadata))


def fuzz(cases: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Make and use mutants; return the counts of outcomes, and a line for each fault."""
    torch.set_num_threads(1)
    stores, counts, faults = bases(folder), Counter[str](), []
    for base in stores:  # kernels are loaded once, in this process
        if (outcome := use(base.path, base, True)) != "right":
            raise AssertionError(f"the store itself: {outcome}")
    for i in range(cases):
        rng = np.random.default_rng([seed, i])
        base, mutant = stores[i % len(stores)], folder / "mutant.zarr"
        for leftover in (mutant, folder / "aside"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            leftover.unlink(missing_ok=True)
        shutil.copytree(base.path, mutant)
        has_checksum = rng.random() < 0.85
        changes = CHECKSUMMED if has_checksum else AFTERWARDS
        change = changes[rng.integers(len(changes))]
        what = change(mutant, rng)
        if has_checksum:
            mend_checksums(mutant)
        is_same = not any(word in what for word in ("pixel", "labels", "machine", "train_windows"))
        outcome = in_a_child(lambda base=base, is_same=is_same, mutant=mutant: use(mutant, base, is_same))
        kind = outcome.partition(":")[0]
        counts[f"{change.__name__}: {kind}"] += 1
        if kind in ("signal", "hang", "traceback", "wrong", "memory"):
            faults.append(f"case {i} of seed {seed}: {what}: {outcome}")
            print(faults[-1], flush=True)
    return counts, faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp()) if arguments.work is None else arguments.work
    counts, faults = fuzz(arguments.cases, arguments.seed, work)
    for kind, number in sorted(counts.items()):
        print(f"{number:6} {kind}")
    print(f"{sum(counts.values())} cases, {len(faults)} faults")
    sys.exit(bool(faults))
