"""The page: one HTML file that shows a sample, its steps, and the training patches behind each pixel.

The page holds its data and loads nothing: sprites of images as PNG, and the patches of all pixels as typed
arrays (image and place of the patch, and the weight as a 16-bit integer). The sprite of training images, most
of the bytes, comes after the script: the page can be used before the sprite is read.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchindex.errors import InputError, printable
from patchindex.explain.explanation import Explanation

__all__ = ["LARGEST", "page_of"]

LARGEST = 8_000_000  # bytes of a page; training images beyond are left out, the lightest first
COLUMNS = 32  # training images per row of the sprite


def page_of(
    found: Explanation,
    *,
    beside: Tensor | None = None,
    beside_name: str = "",
    label_names: Sequence[str] = (),
    largest: int = LARGEST,
) -> str:
    """Return the page of a sample, as the text of one HTML file.

    Parameters
    ----------
    found : Explanation
    beside : Tensor, shape (1, C, H, W), optional
        A second image, such as a network's, in [-1, 1].
    beside_name : str
        Caption of the second image.
    label_names : sequence of str
        Names of the labels 0, 1, ...
    largest : int
        Most bytes. Training images are left out until the page is smaller: the images with the least
        weight first. Their patches are still listed.

    Returns
    -------
    str
        HTML that needs no other file and no network.

    Raises
    ------
    InputError
        When the second image has another size, or the page is too large without any training image.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.explain import explain_sample, redraw
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = explain_sample(m, redraw(m, torch.randn(1, 1, 8, 8), steps=3))
    >>> "Patches behind sample 0" in page_of(found)
    True
    """
    image = found.steps.image[None]
    if beside is not None and tuple(beside.shape) != tuple(image.shape):
        raise InputError(
            f"is of shape {tuple(beside.shape)}, the sample of {tuple(image.shape)}",
            parameter="beside",
            remedy="give an image of the sample's size",
        )
    arrays, images, weights = _patches(found)
    pictures = {
        "sample": _png(image, 1),
        "strip": _png(torch.cat([found.steps.x, found.steps.mean]), len(found.steps)),
        "nearest": _png(found.nearest, len(found.nearest)),
    }
    if beside is not None:
        pictures["beside"] = _png(beside, 1)
    training = found.machine.training
    labels, numbers = training.labels, training.numbers_of(images)
    machine = found.machine
    data: dict[str, Any] = {
        "size": image.shape[2:],
        "top": arrays.pop("top"),
        "number": found.steps.number,
        "circular": machine.machine == "ELS",
        "wrapped": machine.train_windows == "wrapped",
        "steps": _steps(found),
        "arrays": {name: _packed(array) for name, array in arrays.items()},
        "images": {
            "id": images.tolist(),
            "label": [-1] * len(images) if labels is None else labels[numbers].tolist(),
            "name": list(map(printable, training.image_names(images))),
            "columns": COLUMNS,
            "shown": 0,
        },
        "label_names": list(label_names),
        "nearest": [
            {"image": int(n), "distance": float(d), "name": printable(name)}
            for n, d, name in zip(
                found.nearest_images,
                found.nearest_distances,
                training.image_names(found.nearest_images),
                strict=True,
            )
        ],
        "beside_name": beside_name,
        "lead": _lead(found),
        "summary": _summary(found),
        "pictures": pictures,
    }
    empty = len(_fill(found, data, ""))
    room = largest - empty
    if room < 0:
        raise InputError(
            f"the page takes {empty:,} bytes without training images, more than {largest:,}",
            parameter="html",
            remedy="explain fewer patches per pixel, or the last step only",
        )
    shown = np.argsort(-weights, kind="stable")
    _reorder(data, shown)
    sprite, count = _sprite(found, images[shown], room)
    data["images"]["shown"] = count
    return _fill(found, data, sprite)


def _patches(found: Explanation) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the arrays of the page, the training images in use, and their weight in all patches."""
    explained = [each for each in found.patches if each is not None]
    size = found.mosaic.image.shape
    image, place, weight = (
        np.stack(parts)
        for parts in zip(
            *((each.image, each.y * size[1] + each.x, each.weight) for each in explained), strict=True
        )
    )
    there = image >= 0
    images, entry = np.unique(image[there], return_inverse=True)
    entries = np.full(image.shape, len(images))
    entries[there] = entry
    arrays = {
        "image": entries.astype(np.uint16 if len(images) < 2**16 else np.uint32),
        "place": np.where(there, place, 0).astype(np.uint16 if np.prod(size) <= 2**16 else np.uint32),
        "weight": (weight * 65535).round().astype(np.uint16),
        "top": image.shape[2],
        "rest": np.stack([each.rest for each in explained]).astype(np.float32),
        "entropy": np.stack([each.entropy for each in explained]).astype(np.float32),
        "captured": np.stack([each.captured_mass for each in explained]).astype(np.float32),
        "ess": found.steps.ess.astype(np.float32),
        "stderr": found.steps.stderr.astype(np.float32),
        "difference": found.mosaic.difference.astype(np.float32),
    }
    return arrays, images, np.bincount(entry, weight[there], len(images))


def _reorder(data: dict[str, Any], order: np.ndarray) -> None:
    """Bring the table of training images into another order."""
    images, kind = data["images"], {"u2": np.uint16, "u4": np.uint32}[data["arrays"]["image"]["type"]]
    for name in ("id", "label", "name"):
        images[name] = [images[name][i] for i in order]
    rank = np.empty(len(order) + 1, kind)
    rank[order], rank[-1] = np.arange(len(order)), len(order)
    entries = np.frombuffer(base64.b64decode(data["arrays"]["image"]["bytes"]), kind)
    data["arrays"]["image"] = _packed(rank[entries])


def _sprite(found: Explanation, images: np.ndarray, room: int) -> tuple[str, int]:
    """Return a sprite of the first training images, as many as fit into the room, and their number."""
    training = found.machine.training
    pixels_of_image = int(np.prod(training.size)) * training.channels
    # An image takes at least a tenth of its pixels as PNG, and a third more as base64.
    count = min(len(images), 10 * room // pixels_of_image)
    while count > 0:
        chosen = training.numbers_of(images[:count])
        order = np.argsort(chosen, kind="stable")
        pixels = np.empty((count, *training.size, training.channels), np.uint8)
        pixels[order] = training.read_some(chosen[order])
        url = _png_of(pixels, COLUMNS)
        if len(url) <= room:
            return url, count
        count = min(count - 1, int(count * room / len(url) * 0.98))
    return "", 0


def _steps(found: Explanation) -> list[dict[str, Any]]:
    rows, row = [], 0
    for i, each in enumerate(found.patches):
        method = None if each is None else each.method
        rows.append({
            "t": float(found.steps.t[i]),
            "k": int(found.steps.k[i]),
            "method": method,
            "row": None if each is None else row,
        })  # fmt: skip
        row += each is not None
    return rows


def _lead(found: Explanation) -> str:
    """Return the sentence below the title."""
    training = found.machine.training
    images = f"{len(training):,} training images of {_last_part(training.source.name)}"
    return (
        f"Drawn by {found.machine.machine} from {images}, without a network. "
        "The value of a pixel is a mean of the centres of training patches; the page shows the heaviest."
    )


def _last_part(name: str) -> str:
    """Return the name of a source without its folders: a page is passed on.

    >>> _last_part("/home/me/photos/"), _last_part("/data/set.h5::train/images"), _last_part("array")
    ('photos', 'set.h5::train/images', 'array')
    """
    path, colons, inside = name.partition("::")
    return f"{PurePath(path).name or path}{colons}{inside}"


def _summary(found: Explanation) -> list[tuple[str, str]]:
    numbers = found.mosaic.summary()
    single = numbers["single"]
    return [
        ("source images", f"{numbers['source_images']:,}"),
        ("segments", f"{numbers['segments']:,}"),
        ("segments of 4 pixels or more", f"{numbers['segments_of_4']:,}"),
        ("largest segment", f"{numbers['largest_segment']:,} pixels"),
        ("pixels decided by one patch", "not known" if single is None else f"{single:.1%}"),
        (
            f"pixels within {numbers['tolerance']:g} of the centre of the nearest patch",
            f"{numbers['mosaic_share']:.1%}",
        ),
        ("heaviest patches", numbers["method"]),
        ("nearest patches", "exact"),
    ]


def _fill(found: Explanation, data: dict[str, Any], sprite: str) -> str:
    """Return the template with the data in it, and the sprite of training images."""
    folder = files("patchindex.explain")
    title = f"Patches behind sample {found.steps.number}"
    # Text of a JSON element ends at "</", which JSON may write as "<\/".
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (folder / "page.js").read_text(encoding="utf-8"),
        "DATA": packed,
        "SOURCES": sprite,
    }
    # All at once: the name of a label or of a file may be a mark.
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub("@(TITLE|STYLE|SCRIPT|DATA|SOURCES)@", lambda mark: parts[mark[1]], template)


def _packed(array: np.ndarray) -> dict[str, str]:
    """Return an array as its type and its bytes, little-endian, in base64."""
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"type": kind, "bytes": base64.b64encode(raw).decode()}


def _png(images: Tensor, columns: int) -> str:
    """Return images (n, C, H, W) in [-1, 1], clamped, as one PNG in a data URL."""
    levels = ((images.detach().cpu().permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).round()
    return _png_of(levels.numpy().astype(np.uint8), columns)


def _png_of(pixels: np.ndarray, columns: int) -> str:
    """Return images (n, H, W, C), uint8, as one PNG in a data URL, `columns` images per row."""
    n, height, width, channels = pixels.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.zeros((rows * columns, height, width, channels), np.uint8)
    canvas[:n] = pixels
    canvas = canvas.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    canvas = canvas.reshape(rows * height, columns * width, channels)
    out = io.BytesIO()
    Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
