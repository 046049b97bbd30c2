r"""The exact scan over more images than fit in memory: time, peak memory, and the price of reading.

    python benchmarks/beyond_memory.py cifar10_train.npz --work DIR

Writes a zarr array of `--gibibytes` (3) to DIR: the images, then mirrored and shifted copies of the images.
A process of its own scans the array for 16 pixels of a noisy image while its RssAnon is watched. Then a slice
of the array is scanned from disk and from memory in turn, for 16 pixels and for all. Before each scan from
disk the files are dropped from the system's memory; the time counts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
import zarr
from common import alternate, arguments, exact_mean, noisy, report, some_pixels, variant, write_json
from peak import run_measured

import patchindex as pi
from patchindex.exact import load_kernel
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import cosine

K, T = 7, 0.6
CHUNK = 4096  # images per chunk of the array


def write(images: np.ndarray, path: Path, count: int) -> None:
    """Write `count` images chunk by chunk: the images and variants of them."""
    array = zarr.create_array(
        path,
        shape=(count, *images.shape[1:]),
        chunks=(CHUNK, *images.shape[1:]),
        dtype=np.uint8,
        overwrite=True,
    )
    for start in range(0, count, CHUNK):
        ids = range(start, min(start + CHUNK, count))
        array[start : ids.stop] = np.stack([variant(images, i) for i in ids])


def forget(path: Path) -> None:
    """Ask the system to drop these files from its memory."""
    os.sync()
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def scan_some(training: TrainingImages, x: torch.Tensor, pixels: int | None) -> torch.Tensor:
    some = None if pixels is None else [some_pixels(x, pixels)]
    return exact_mean(training, Geometry.of("ELS", K, training.size), x, cosine(T), pixels=some)


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=5)
    parser.add_argument("--gibibytes", type=float, default=3)
    parser.add_argument("--slice", type=int, default=50_000, help="images of the comparison with memory")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # the process that is watched
    args = parser.parse_args()
    if args.only:
        scan_some(TrainingImages(args.only), torch.from_numpy(np.load(args.work / "query.npy")), 16)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    path, images = args.work / "images.zarr", pi.open_images(args.source)[:]
    count = int(args.gibibytes * 2**30) // images[0].nbytes
    if not path.exists() or zarr.open_array(path, mode="r").shape[0] != count:
        write(images, path, count)
    x = noisy(images[-1:], T)
    np.save(args.work / "query.npy", x.numpy())
    load_kernel()
    taken = run_measured([sys.executable, __file__, args.source, "--work", args.work, "--only", path])
    print(f"16 pixels, {count} images of {images.shape[1:]}, {args.gibibytes} GiB, k = {K}: {taken}")
    part = args.work / "slice.zarr"
    write(images, part, args.slice)
    disk, memory = TrainingImages(part), TrainingImages(zarr.open_array(part, mode="r")[:])
    rows = []
    for pixels in (16, None):
        times = alternate(
            {
                "disk": lambda pixels=pixels: forget(part) or scan_some(disk, x, pixels),
                "memory": lambda pixels=pixels: scan_some(memory, x, pixels),
            },
            args.repeats,
        )
        rows.append(
            {"pixels": pixels}
            | {f"{name}, s": times.median(name) for name in times.seconds}
            | {
                "disk / memory": times.ratio("disk", "memory"),
                "difference": float((times.results["disk"] - times.results["memory"]).abs().max()),
            }
        )
    forms = {"pixels": "d", "disk, s": ".2f", "memory, s": ".2f", "disk / memory": ".3f", "difference": ".0e"}
    report(rows, forms, f"{args.slice} images (no number: all pixels)")
    write_json(args.json, images=count, taken=taken, rows=rows)


if __name__ == "__main__":
    main()
