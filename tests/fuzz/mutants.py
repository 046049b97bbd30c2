"""Small valid image sources of every format, and the mutations of their files.

A `Seed` writes a source into a folder, and names the files that a mutation may change.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mutations import (
    PLAIN,
    Mutation,
    change_bytes,
    change_json,
    change_text,
    inside_gzip,
    inside_png,
    inside_zip,
)
from PIL import Image

IMAGES = (np.arange(6 * 8 * 10 * 3) * 7 % 251).astype(np.uint8).reshape(6, 8, 10, 3)
GRAY = IMAGES[..., 0].copy()
LABELS = np.array([3, 1, 4, 1, 5, 9])
UNPACK = (zlib.error, zipfile.BadZipFile, OverflowError)


@dataclass(frozen=True)
class Seed:
    """A valid source: `write(folder)` returns the name of the source, and `labels` names a file of labels."""

    write: Callable[[Path], str]
    mutate: dict[str, tuple[Mutation, ...]] = field(default_factory=dict)  # by the end of a file's name
    labels: str | None = None


def write_npz(folder: Path) -> str:
    np.savez(folder / "a.npz", images=IMAGES, labels=LABELS)
    return "a.npz"


def write_npy(folder: Path) -> str:
    np.save(folder / "a.npy", IMAGES)
    return "a.npy"


def write_floats(folder: Path) -> str:
    np.save(folder / "a.npy", (GRAY / 127.5 - 1).astype(np.float32))
    return "a.npy"


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx(folder: Path) -> str:
    (folder / "a-images-idx3-ubyte").write_bytes(idx(GRAY))
    (folder / "a-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return "a-images-idx3-ubyte"


def write_idx_gz(folder: Path) -> str:
    (folder / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(GRAY)))
    return "a-images-idx3-ubyte.gz"


def write_hdf5(folder: Path) -> str:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, chunks=(2, 8, 10, 3), compression="gzip", shuffle=True)
        file["labels"] = LABELS
    return "a.h5"


def write_hdf5_plain(folder: Path) -> str:
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file["deep/images"] = IMAGES
        file["images"] = h5py.SoftLink("deep/images")
        file["labels"] = LABELS.astype(np.float32)
    return "a.h5"


def write_zarr(zarr_format: int) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        # Written by hand: zarr starts threads, which a process must not have before it forks.
        root = folder / "a.zarr"
        for name, array, chunk in (("images", IMAGES, (2, 8, 10, 3)), ("labels", LABELS, (6,))):
            dtype = "uint8" if name == "images" else "int64"
            (root / name).mkdir(parents=True)
            if zarr_format == 3:
                codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
                codecs += [{"name": "gzip", "configuration": {"level": 5}}]
                about = {
                    **{"zarr_format": 3, "node_type": "array", "shape": array.shape, "data_type": dtype},
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                    **{"fill_value": 0, "codecs": codecs, "attributes": {}},
                }
                (root / name / "zarr.json").write_text(json.dumps(about))
            else:
                about = {
                    **{
                        "zarr_format": 2,
                        "shape": array.shape,
                        "chunks": chunk,
                        "order": "C",
                        "filters": None,
                    },
                    **{
                        "dtype": np.dtype(dtype).str,
                        "fill_value": 0,
                        "compressor": {"id": "zlib", "level": 1},
                    },
                }
                (root / name / ".zarray").write_text(json.dumps(about))
            for i in range(0, len(array), chunk[0]):
                key = [i // chunk[0], *[0] * (array.ndim - 1)]
                text = "/".join(["c", *map(str, key)]) if zarr_format == 3 else ".".join(map(str, key))
                path = root / name / text
                path.parent.mkdir(parents=True, exist_ok=True)
                data = np.ascontiguousarray(array[i : i + chunk[0]]).astype(dtype).tobytes()
                path.write_bytes(gzip.compress(data) if zarr_format == 3 else zlib.compress(data))
        about = {"zarr_format": zarr_format} | (
            {"node_type": "group", "attributes": {}} if zarr_format == 3 else {}
        )
        (root / ("zarr.json" if zarr_format == 3 else ".zgroup")).write_text(json.dumps(about))
        return "a.zarr"

    return write


def write_pictures(suffix: str, **options: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for i in range(2):
            picture = Image.fromarray(IMAGES[i])
            if suffix == ".png":
                picture.putalpha(Image.fromarray(GRAY[i]))
            picture.save(folder / f"{i}{suffix}", **options)
        return "."

    return write


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            picture = io.BytesIO()
            Image.fromarray(IMAGES[i]).save(picture, "BMP")
            archive.writestr(f"class{i % 2}/{i}.bmp", picture.getvalue())
    return "a.zip"


def write_celeba(folder: Path) -> str:
    (folder / "img_align_celeba").mkdir()
    for i in range(4):
        Image.fromarray(IMAGES[i]).save(folder / "img_align_celeba" / f"{i}.png")
    (folder / "list_eval_partition.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(4)))
    rows = "".join(f"{i}.png {(-1) ** i} 1\n" for i in range(4))
    (folder / "list_attr_celeba.txt").write_text(f"4\nSmiling Male\n{rows}")
    return "."


def write_cifar(folder: Path) -> str:
    """Three records of CIFAR-10, and its file of label names."""
    images = np.resize(IMAGES, (3, 3 * 32 * 32))
    (folder / "data_batch_1.bin").write_bytes(np.insert(images, 0, LABELS[:3], axis=1).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return "data_batch_1.bin"


def write_with_labels(name: str, data: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return write_npy(folder)

    return write


def npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


ANY_LINES = "\n".join(map(str, LABELS.tolist())).encode()
PICTURE = {"": PLAIN}
SEEDS = {
    "npz": Seed(write_npz, {"": (*PLAIN, inside_zip(*PLAIN, change_text))}),
    "npy": Seed(write_npy, {"": (*PLAIN, change_text)}),
    "npy-float": Seed(write_floats, {"": (*PLAIN, change_text)}),
    "idx": Seed(write_idx, {"": PLAIN}),
    "idx-gz": Seed(write_idx_gz, {"": (*PLAIN, inside_gzip(*PLAIN))}),
    "hdf5": Seed(write_hdf5, {"": PLAIN}),
    "hdf5-latest": Seed(write_hdf5_plain, {"": PLAIN}),
    "zarr-3": Seed(write_zarr(3), {"json": (change_json, change_text), "0": (*PLAIN, inside_gzip(*PLAIN))}),
    "zarr-2": Seed(write_zarr(2), {"array": (change_json, change_text), "group": (change_json,), "0": PLAIN}),
    "png": Seed(write_pictures(".png"), {"": (*PLAIN, inside_png, inside_png)}),
    "jpeg": Seed(write_pictures(".jpg", quality=90), PICTURE),
    "gif": Seed(write_pictures(".gif"), PICTURE),
    "bmp": Seed(write_pictures(".bmp"), PICTURE),
    "tiff": Seed(write_pictures(".tif"), PICTURE),
    "tiff-deflate": Seed(write_pictures(".tif", compression="tiff_adobe_deflate"), PICTURE),
    "webp": Seed(write_pictures(".webp"), PICTURE),
    "ppm": Seed(write_pictures(".ppm"), {"": (*PLAIN, change_text)}),
    "tga": Seed(write_pictures(".tga"), PICTURE),
    "zip": Seed(write_zip, {"": (*PLAIN, inside_zip(*PLAIN))}),
    "celeba": Seed(write_celeba, {".txt": (change_text, change_bytes)}),
    "cifar": Seed(write_cifar, {".bin": PLAIN, ".txt": (change_text, change_bytes)}),
    "labels.txt": Seed(
        write_with_labels("l.txt", ANY_LINES), {"l.txt": (change_text, change_bytes)}, "l.txt"
    ),
    "labels.csv": Seed(
        write_with_labels("l.csv", ANY_LINES), {"l.csv": (change_text, change_bytes)}, "l.csv"
    ),
    "labels.npy": Seed(
        write_with_labels("l.npy", npy(LABELS)), {"l.npy": (*PLAIN, change_text)}, labels="l.npy"
    ),
    "labels.idx": Seed(
        write_with_labels("l-labels-idx1-ubyte", idx(LABELS)), {"ubyte": PLAIN}, labels="l-labels-idx1-ubyte"
    ),
}


def write_mutant(seed: Any, folder: Path, rng: random.Random) -> str:
    """Write a source whose files are changed, once or twice; return the name of the source."""
    source = seed.write(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice([f for f in files if any(f.name.endswith(end) for end in seed.mutate)])
        mutations = next(m for end, m in seed.mutate.items() if path.name.endswith(end))
        try:
            path.write_bytes(rng.choice(mutations)(path.read_bytes(), rng))
        except (ValueError, OSError, EOFError, LookupError, AttributeError, TypeError, *UNPACK):
            # A second mutation may find a file that the first has damaged too much.
            path.write_bytes(change_bytes(path.read_bytes(), rng))
    return source
