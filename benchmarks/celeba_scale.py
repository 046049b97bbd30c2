r"""A build at the scale of CelebA: 200 000 images as JPEGs in its layout, three scales, 4 GB.

    python benchmarks/celeba_scale.py write cifar10_train.npz --work DIR
    python benchmarks/peak.py patchindex build DIR/celeba -o DIR/celeba.zarr --split all --scales 3,7,15 \
        --memory 4G --locality cifar10-resnet-circular --no-tune
    python benchmarks/celeba_scale.py check --work DIR

`write` makes 200 000 images from the 50 000 of CIFAR-10: the images, mirrored images, and crops of both
shifted by two pixels, with the lists that CelebA comes with. `check` draws eight images with `auto`, and
compares the first with exact scores at 64 random pixels of each step along its trajectory.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import anonymous_mebibytes, arguments, exact_mean, report, some_pixels, variant, write_json
from PIL import Image

import patchindex as pi
from patchindex.schedules import cosine

SPLITS = (0.99, 0.005, 0.005)


def write(images: np.ndarray, folder: Path, count: int) -> None:
    """Write the JPEGs and the lists."""
    faces = folder / "img_align_celeba"
    faces.mkdir(parents=True)

    def save(first: int) -> None:
        for i in range(first, min(first + 1000, count)):
            picture = Image.fromarray(variant(images, i))
            picture.save(faces / f"{i + 1:06d}.jpg", quality=95, subsampling=0)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(0, count, 1000)))
    rng = np.random.default_rng(0)
    parts, mirrored = rng.choice(3, count, p=SPLITS), np.arange(count) // len(images) % 2
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    partition = (f"{name} {part}" for name, part in zip(names, parts, strict=True))
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    signs = (f"{name} {2 * bit - 1:2d}" for name, bit in zip(names, mirrored, strict=True))
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), "Mirrored", *signs]) + "\n")


def check(store: Path, n: int, pixels: int, out: Path | None) -> None:
    """Draw, and compare the first image's steps with exact scores at some pixels."""
    index = pi.open_index(store)
    machine = pi.ScoreMachine(index)
    kept, rows = [], []
    began = time.perf_counter()
    drawn = pi.sample(
        machine,
        n=n,
        batch_size=4,
        callback=lambda step: kept.append((step["t"], step["x"][:1].clone(), step["estimate"])),
    )
    total = time.perf_counter() - began
    x = drawn.x_T[:1]
    for number, (t, after, estimate) in enumerate(kept[:19]):
        chosen, k = some_pixels(x, pixels, seed=number), machine.scale_at(t)
        exact = exact_mean(index.training, index.geometry(k), x, cosine(t), pixels=[chosen])
        error = estimate.mean[0].flatten(1)[:, chosen].T - exact
        stderr = estimate.stderr[0].flatten()[chosen]
        within = (error.square().mean(1).sqrt() <= 2 * stderr + 0.001).double().mean()
        row = {"t": t, "k": k, "rmse": error.square().mean().sqrt(), "stderr": stderr.square().mean().sqrt()}
        row |= {"within": within, "exact": estimate.exact_pixels / estimate.stderr.numel()}
        rows.append({name: value if name == "k" else float(value) for name, value in row.items()})
        x = after
    forms = {"t": ".2f", "k": "d", "rmse": ".4f", "stderr": ".4f", "within": ".3f", "exact": ".4f"}
    report(rows, forms, f"{index}")
    print(f"{total / n:.1f} s per image, RssAnon at the end {anonymous_mebibytes():.0f} MiB")
    write_json(out, seconds=total / n, rows=rows)


def main() -> None:
    parser = arguments(__doc__, source=False, work=True)
    parser.add_argument("part", choices=["write", "check"])
    parser.add_argument("source", metavar="IMAGES", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=64)
    args = parser.parse_args()
    if args.part == "check":
        check(args.work / "celeba.zarr", args.n, args.pixels, args.json)
        return
    if args.source is None:
        parser.error("write needs IMAGES")
    start = time.perf_counter()
    write(pi.open_images(args.source)[:], args.work / "celeba", args.images)
    print(f"{args.images} JPEGs in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
