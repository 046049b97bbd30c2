r"""A build at the scale of CelebA: 200 000 images as JPEGs in its layout, three scales, 4 GB.

    python benchmarks/celeba_scale.py write cifar10_train.npz --work DIR
    python benchmarks/peak.py patchindex build DIR/celeba -o DIR/celeba.zarr --split all --scales 3,7,15 \
        --memory 4G --locality cifar10-resnet-circular --no-tune
    python benchmarks/celeba_scale.py check --work DIR

`write` makes 200 000 images of CIFAR-10's 50 000: as they are, mirrored, and crops of both moved by two
pixels, with the lists that CelebA comes with. `check` draws eight images with `auto`, and compares the first
with exact scores at 64 random pixels of each step along its trajectory.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from peak import anonymous_mebibytes
from PIL import Image
from timing import table

import patchindex as pi
from patchindex.exact import scan

IMAGES, SPLITS = 200_000, (0.99, 0.005, 0.005)


def variant(images: np.ndarray, i: int) -> np.ndarray:
    """Return image i of the four times as many: plain, mirrored, and both moved by two pixels."""
    which, n = divmod(i, len(images))
    image = images[n]
    if which % 2:
        image = image[:, ::-1]
    if which >= 2:
        image = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")[4:, :-4]
    return image


def write(images: np.ndarray, folder: Path) -> None:
    """Write the JPEGs and the lists."""
    faces = folder / "img_align_celeba"
    faces.mkdir(parents=True)

    def save(first: int) -> None:
        for i in range(first, min(first + 1000, IMAGES)):
            picture = Image.fromarray(np.ascontiguousarray(variant(images, i)))
            picture.save(faces / f"{i + 1:06d}.jpg", quality=95, subsampling=0)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(0, IMAGES, 1000)))
    rng = np.random.default_rng(0)
    parts, mirrored = rng.choice(3, IMAGES, p=SPLITS), np.arange(IMAGES) // len(images) % 2
    names = [f"{i + 1:06d}.jpg" for i in range(IMAGES)]
    partition = (f"{name} {part}" for name, part in zip(names, parts, strict=True))
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    signs = (f"{name} {2 * bit - 1:2d}" for name, bit in zip(names, mirrored, strict=True))
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(IMAGES), "Mirrored", *signs]) + "\n")


def check(store: Path, n: int, pixels: int) -> None:
    """Draw, and compare the first image's steps with exact scores at some pixels."""
    index = pi.open_index(store)
    machine = pi.ScoreMachine(index)
    rows, seconds = [], []
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    kept = []

    def keep(step):  # type: ignore[no-untyped-def]
        kept.append((step["t"], step["x"][:1].clone(), step["estimate"]))

    drawn = pi.sample(machine, n=n, batch_size=4, callback=keep)
    total = time.perf_counter() - began
    noisy = drawn.x_T[:1]
    for t, after, estimate in kept[:19]:
        chosen = torch.from_numpy(np.sort(rng.choice(noisy[0, 0].numel(), pixels, replace=False)))
        beta = machine._beta(t)
        start = time.perf_counter()
        state = scan(
            index.training,
            index.geometry(machine.scale_at(t)),
            noisy,
            (1 - beta) ** 0.5,
            beta,
            pixels=[chosen],
        )
        seconds.append(time.perf_counter() - start)
        error = estimate.mean[0].flatten(1)[:, chosen].T - state.mean()
        stderr = estimate.stderr[0].flatten()[chosen]
        rows.append(
            {
                "t": t,
                "k": machine.scale_at(t),
                "rmse": float(error.square().mean().sqrt()),
                "stderr": float(stderr.square().mean().sqrt()),
                "within": float((error.square().mean(1).sqrt() <= 2 * stderr + 0.001).double().mean()),
                "exact": estimate.exact_pixels / estimate.stderr.numel(),
            }
        )
        noisy = after
    print(f"{index}")
    print(f"{total / n:.1f} s an image, RssAnon at the end {anonymous_mebibytes():.0f} MiB")
    print(
        table(rows, {"t": ".2f", "k": "d", "rmse": ".4f", "stderr": ".4f", "within": ".3f", "exact": ".4f"})
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["write", "check"])
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=64)
    args = parser.parse_args()
    if args.part == "write":
        if args.source is None:
            parser.error("write needs a source")
        start = time.perf_counter()
        write(pi.open_images(args.source)[:], args.work / "celeba")
        print(f"{IMAGES} JPEGs in {time.perf_counter() - start:.0f} s")
    else:
        check(args.work / "celeba.zarr", args.n, args.pixels)


if __name__ == "__main__":
    main()
