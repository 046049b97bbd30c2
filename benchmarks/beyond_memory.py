r"""The exact scan over more images than may be in memory: its time, its peak memory, and what reading costs.

    python benchmarks/beyond_memory.py cifar10_train.npz --work DIR

Writes a zarr array of `--gibibytes` (3) to DIR: the images, then moved and mirrored copies of them, real
pixels all. A process of its own scans it for 16 pixels of a noisy image while its RssAnon is watched. Then a
slice of the array is scanned from disk (dropped from the system's memory before each scan; the dropping is
counted too) and from memory in turn, for 16 pixels and for all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import zarr
from peak import run_measured
from timing import alternate

import patchindex as pi
from patchindex.exact import load_kernel, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import cosine

K, T = 7, 0.6
CHUNK = 4096  # images a chunk of the array


def write(images: np.ndarray, path: Path, count: int) -> None:
    """Write `count` images, in copies that are mirrored or moved by some pixels, chunk by chunk."""
    array = zarr.create_array(
        path,
        shape=(count, *images.shape[1:]),
        chunks=(CHUNK, *images.shape[1:]),
        dtype=np.uint8,
        overwrite=True,
    )
    for start in range(0, count, CHUNK):
        ids = np.arange(start, min(start + CHUNK, count))
        copy, source = ids // len(images), ids % len(images)
        block = images[source]
        for number in np.unique(copy):
            mine = copy == number
            moved = block[mine] if number % 2 == 0 else block[mine][:, :, ::-1]
            block[mine] = np.roll(moved, (number // 2 % 5, number // 10), (1, 2))
        array[start : start + len(ids)] = block


def forget(path: Path) -> None:
    """Ask the system to drop what it has of these files in memory."""
    os.sync()
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def query(images: np.ndarray) -> torch.Tensor:
    clean = torch.from_numpy(images[:1].transpose(0, 3, 1, 2) / 127.5 - 1)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(clean.shape))
    beta = cosine(T)
    return ((1 - beta) ** 0.5 * clean + beta**0.5 * noise).float()


def scan_some(training: TrainingImages, x: torch.Tensor, pixels: int | None) -> torch.Tensor:
    geometry, beta = Geometry.of("ELS", K, training.size), cosine(T)
    some = None
    if pixels is not None:
        some = [torch.from_numpy(np.random.default_rng(0).choice(x[0, 0].numel(), pixels, replace=False))]
    return scan(training, geometry, x, (1 - beta) ** 0.5, beta, pixels=some).mean()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IMAGES")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gibibytes", type=float, default=3)
    parser.add_argument("--slice", type=int, default=50_000, help="images of the comparison with memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # the process that is watched
    args = parser.parse_args()
    if args.only:
        x = torch.from_numpy(np.load(args.work / "query.npy"))
        print(json.dumps(scan_some(TrainingImages(args.only), x, 16)[:, 0].tolist()))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "images.zarr"
    images = pi.open_images(args.source).read(slice(None))
    count = int(args.gibibytes * 2**30) // images[0].nbytes
    if not path.exists() or zarr.open_array(path, mode="r").shape[0] != count:
        write(images, path, count)
    x = query(images[-1:])
    np.save(args.work / "query.npy", x.numpy())
    load_kernel()
    measured = run_measured([sys.executable, __file__, args.source, "--work", args.work, "--only", path])
    print(
        f"16 pixels, {count} images of {images.shape[1:]}, {args.gibibytes} GiB, k = {K}: "
        f"{measured.seconds:.1f} s, peak RssAnon {measured.mebibytes:.0f} MiB"
    )
    slice_path = args.work / "slice.zarr"
    write(images, slice_path, args.slice)
    disk = TrainingImages(slice_path)
    memory = TrainingImages(zarr.open_array(slice_path, mode="r")[:])
    for pixels in (16, None):
        times = alternate(
            {
                "disk": lambda pixels=pixels: forget(slice_path) or scan_some(disk, x, pixels),
                "memory": lambda pixels=pixels: scan_some(memory, x, pixels),
            },
            args.repeats,
        )
        off = float((times.results["disk"] - times.results["memory"]).abs().max())
        print(
            f"{pixels or 'all'} pixels, {args.slice} images: disk {times.median('disk'):.2f} s, "
            f"memory {times.median('memory'):.2f} s, ratio {times.ratio('disk', 'memory'):.3f}, {off:.0e} off"
        )


if __name__ == "__main__":
    main()
