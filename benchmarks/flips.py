r"""One flipped bit anywhere in a store: `verify` finds it, and sampling never draws another image.

    python benchmarks/flips.py cifar10_train.npz --work DIR

A store of 1 000 images and three scales, two of which are sampled. Flips a random bit of a random byte 200
times: half of the positions are even over all files, half over all bytes. `verify` has to find every flip;
drawing has to end with an error before there is an image, or give exactly the image of the undamaged store.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from common import arguments, write_json

import patchindex as pi
from patchindex.errors import PatchIndexError


def draw(path: Path, estimator: str) -> torch.Tensor:
    """Draw an image with the first two scales."""
    options = {"probes": 64} if estimator == "topk" else {}
    machine = pi.ScoreMachine(path, estimator=estimator, locality=[3, 3, 5, 5], threads=1, **options)
    return pi.sample(machine, n=1, steps=3).images


def main() -> None:
    parser = arguments(__doc__, work=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=200)
    args = parser.parse_args()
    path = args.work / "flips.zarr"
    if not path.exists():
        pi.build_index(pi.open_images(args.source, limit=args.images), path, scales=(3, 5, 7))
        pi.tune(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(0)
    half = args.flips // 2
    which = np.concatenate(
        [rng.integers(0, len(files), half), rng.choice(len(files), args.flips - half, p=sizes / sizes.sum())]
    )
    estimators = ("topk", "auto")
    truth = {name: draw(path, name) for name in estimators}
    found: Counter[str] = Counter()
    for i in which:
        file = files[i]
        whole = file.read_bytes()
        data = bytearray(whole)
        position = int(rng.integers(len(data)))
        data[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            try:
                found["verify"] += not pi.verify(path).whole
            except PatchIndexError:
                found["verify"] += 1
            for name in estimators:
                try:
                    same = torch.equal(draw(path, name), truth[name])
                    found[f"{name}: the same image" if same else f"{name}: ANOTHER IMAGE"] += 1
                except PatchIndexError:
                    found[f"{name}: an error"] += 1
        finally:
            file.write_bytes(whole)
    print(f"{len(which)} flips in {len(files)} files of {sizes.sum()} bytes")
    for name, count in sorted(found.items()):
        print(f"{name}: {count}")
    print("whole again:", pi.verify(path).whole)
    write_json(args.json, files=len(files), bytes=int(sizes.sum()), found=found)


if __name__ == "__main__":
    main()
