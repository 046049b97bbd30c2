"""The images and labels of small sources as other libraries read them, without this package."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = ("bmp", "gif", "jpg", "png", "ppm", "tga", "tif", "webp")


def read_reference(name: str, folder: Path, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the images of a source, uint8 (N, H, W, C), and the labels that it should have."""
    path = folder / source
    if name.startswith("labels"):
        return np.load(path), read_labels(name, folder)
    if name == "npz":
        with np.load(path) as archive:
            return as_bytes(archive["images"]), archive["labels"].ravel()
    if name.startswith("npy"):
        return as_bytes(np.load(path)), None
    if name.startswith("idx"):
        labels = folder / "a-labels-idx1-ubyte"
        return read_idx(path)[..., None], read_idx(labels) if labels.exists() else None
    if name.startswith("hdf5"):
        with h5py.File(path) as file:
            return as_bytes(file["images"][()]), file["labels"][()].ravel() if "labels" in file else None
    if name.startswith("zarr"):
        import zarr

        group = zarr.open(str(path), mode="r")
        if isinstance(group, zarr.Array):
            return as_bytes(group[...]), None
        return as_bytes(group["images"][...]), group["labels"][...].ravel() if "labels" in group else None
    if name == "zip":
        with zipfile.ZipFile(path) as archive:
            plain = {info.filename.lstrip("/"): info for info in archive.infolist() if not info.is_dir()}
            names = sorted(n for n in plain if n.lower().endswith(SUFFIXES) and not n.startswith("."))
            return as_pictures([open_picture(archive.open(plain[n])) for n in names]), None
    if name == "celeba":
        return read_celeba(folder)
    if name == "cifar":
        return read_cifar(path)
    files = sorted(file for file in folder.iterdir() if file.suffix[1:] in SUFFIXES)
    return as_pictures([open_picture(file) for file in files]), None


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return scaled floats as uint8, and a channel for gray images."""
    if array.dtype != np.uint8:
        x = array.astype(np.float64)
        array = np.rint(x * 255 if x.min() >= 0 else (x + 1) * 127.5).astype(np.uint8)
    return array[..., None] if array.ndim == 3 else array


def open_picture(file: object) -> Image.Image:
    """Return a picture, turned and on white."""
    with Image.open(file) as image:  # type: ignore[arg-type]
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            mode = "L" if image.mode in ("LA", "L") else "RGB"
            return Image.alpha_composite(white, image).convert(mode)
        image.load()
        return image


def as_pictures(pictures: list[Image.Image]) -> np.ndarray:
    """Return pictures of one size as one array, gray if all of them are gray."""
    gray = all(picture.mode in ("1", "L") for picture in pictures)
    images = np.stack([np.asarray(picture.convert("L" if gray else "RGB")) for picture in pictures])
    return images[..., None] if gray else images


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of records with one label or with two."""
    data = np.fromfile(path, np.uint8)
    record = next(size for size in (3073, 3074) if len(data) and len(data) % size == 0)
    records = data.reshape(-1, record)
    return records[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, -3073]


def read_labels(name: str, folder: Path) -> np.ndarray:
    """Return the labels of a file of labels."""
    if name == "labels.npy":
        return np.load(folder / "l.npy").ravel()
    if name == "labels.idx":
        return read_idx(folder / "l-labels-idx1-ubyte")
    words = (folder / f"l.{name.partition('.')[2]}").read_bytes().decode("utf-8-sig").split()
    assert all(re.fullmatch("[+-]?[0-9]+", word) for word in words)
    return np.array([int(word) for word in words])


def read_celeba(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the training faces and their two attributes as bits."""
    rows = [
        line.replace(",", " ").split()
        for line in (folder / "list_eval_partition.txt").read_text().splitlines()
    ]
    faces = sorted({row[0] for row in rows if len(row) == 2 and row[1] in ("0", "0.0")})
    lines = [
        line.replace(",", " ").split() for line in (folder / "list_attr_celeba.txt").read_text().splitlines()
    ]
    head = next(line for line in lines if "Smiling" in line)
    places = [1 + head.index(name) for name in ("Smiling", "Male")]
    values = {line[0]: line for line in lines if line and line[0].endswith(".png")}
    yes = ("1", "+1", "1.0", "true", "yes")
    labels = [sum((values[face][p].lower() in yes) << bit for bit, p in enumerate(places)) for face in faces]
    pictures = as_pictures([open_picture(folder / "img_align_celeba" / face) for face in faces])
    return pictures, np.array(labels)
