r"""One flipped bit anywhere in a store: found by `verify`, and by sampling unless it makes no difference.

    python benchmarks/flips.py cifar10_train.npz --work DIR

A store of 1 000 images and three scales; two of them are sampled. 200 times a random bit of a random byte is
flipped, half of the positions evenly over all files and half evenly over all bytes. `verify` has to find it
every time; drawing has to end with an error before there is a picture, or give the very picture of the whole
store.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import patchindex as pi
from patchindex.errors import PatchIndexError


def draw(path: Path, estimator: str) -> torch.Tensor:
    """Draw by the first two scales."""
    options = {"probes": 64} if estimator == "topk" else {}
    machine = pi.ScoreMachine(path, estimator=estimator, locality=[3, 3, 5, 5], threads=1, **options)
    return pi.sample(machine, n=1, steps=3).images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=200)
    args = parser.parse_args()
    path = args.work / "flips.zarr"
    if not path.exists():
        pi.build_index(pi.open_images(args.source, limit=1000), path, scales=(3, 5, 7))
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
    missed = []
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
                    found[f"{name}: the same picture"] += same
                    if not same:
                        missed.append((name, str(file.relative_to(path)), position))
                except PatchIndexError:
                    found[f"{name}: an error"] += 1
        finally:
            file.write_bytes(whole)
    print(f"{len(which)} flips in {len(files)} files of {sizes.sum()} bytes")
    print(json.dumps(found, indent=2))
    print("another picture:", missed)
    print("whole again:", pi.verify(path).whole)


if __name__ == "__main__":
    main()
