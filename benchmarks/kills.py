r"""A build that is killed again and again ends with the same store as a build that is left alone.

    python benchmarks/kills.py cifar10_train.npz --work DIR

Builds the first 5 000 images of the source, two scales and an operating curve, undisturbed. Then starts the
same build with `--resume`, kills it (SIGKILL) at a random moment of a stage, and starts it again, 20 times.
The files that a killed build leaves tell its stage. At the end the store is verified, and its lists are
compared with the undisturbed ones. Then a build on a Dask cluster of two processes loses one of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from common import arguments, write_json

import patchindex as pi

SCALES = (3, 7)
# (stage, scale) of each kill
PLAN = [("images", 0)] * 2 + [
    (stage, k) for k in SCALES for stage in ("train", "shards", "merge") for _ in range(2)
]
PLAN += [("shards", 3), ("shards", 7), ("train", 7)] + [("curve", 0)] * 3


def order(target: tuple[str, int]) -> tuple[int, int]:
    """Sort targets in the order of a build."""
    stage, k = target
    return {"images": 0, "curve": 99}.get(stage, k), ("train", "shards", "merge").index(stage) if k else 0


def stage_of(path: Path) -> tuple[str, int]:
    """Return the stage of a build, from the files that are there."""
    building = path.with_name(path.name + ".building")
    if path.exists():
        return "curve", 0
    if not (building / "source_ids" / "zarr.json").exists():
        return "images", 0
    for k in SCALES:
        folder = building / "scales" / f"k{k:03d}"
        if not folder.exists():
            unfinished = folder.with_name(folder.name + ".tmp")
            if (unfinished / "faiss").exists():
                return "merge", k
            return ("shards" if (unfinished / "shards").exists() else "train"), k
    return "merge", SCALES[-1]


def build(source: Path, path: Path, *more: object) -> subprocess.Popen[bytes]:
    """Start a build."""
    command = [sys.executable, "-m", "patchindex", "build", source, "-o", path, "--limit", 5000]
    command += ["--scales", ",".join(map(str, SCALES)), "--threads", 2, "--resume", *more]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)


def kill_at(
    target: tuple[str, int], source: Path, path: Path, longest: dict[str, float]
) -> tuple[str, int] | None:
    """Start a build, kill it at a random moment of a stage, and return the stage that was hit."""
    process = build(source, path)
    while process.poll() is None and stage_of(path) != target:
        time.sleep(0.001)
    time.sleep(random.random() * longest[target[0]])
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return stage_of(path)


def same(one: Path, other: Path) -> bool:
    """Compare the lists, ids and codes of two stores."""
    first, second = pi.open_index(one), pi.open_index(other)
    return all(
        np.array_equal(ids, its_ids) and np.array_equal(codes, its_codes)
        for k in SCALES
        for (_, ids, codes), (_, its_ids, its_codes) in zip(
            first.scale(k).members(), second.scale(k).members(), strict=True
        )
    )


def on_dask(source: Path, work: Path) -> None:
    """Build on two processes, one of which is killed, and compute an exact score there."""
    path, alone = work / "dask.zarr", work / "threads1.zarr"
    images = pi.open_images(source, limit=5000)
    np.savez(work / "images.npz", images=images[:], labels=images.labels)
    with pi.cluster.connect(workers=2, threads=1) as client:
        pids = list(client.run(os.getpid).values())

        def kill() -> None:
            while stage_of(path) != ("shards", 7):
                time.sleep(0.01)
            time.sleep(0.5)
            os.kill(pids[0], signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        start = time.perf_counter()
        pi.build_index(work / "images.npz", path, scales=SCALES, threads=1, client=client)
        print(f"on two processes, one of them killed: {time.perf_counter() - start:.1f} s")
        shards = pi.cluster.ImageShards(client, work / "images.npz", images=700)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32))).float()
        there, here = (
            pi.ScoreMachine(work / "images.npz", estimator="exact", shards=s).posterior_mean(x, 0.6, k=7).mean
            for s in (shards, None)
        )
        print(f"exact score there and here: {float((there - here).abs().max()):.1e} apart at most")
    pi.build_index(work / "images.npz", alone, scales=SCALES, threads=1)
    print(f"same lists as here: {same(path, alone)}; whole: {pi.verify(path).whole}")


def main() -> None:
    parser = arguments(__doc__, work=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    reference, path = args.work / "reference.zarr", args.work / "killed.zarr"
    start = time.perf_counter()
    if build(args.source, reference).wait():
        raise SystemExit("the undisturbed build failed")
    print(f"undisturbed: {time.perf_counter() - start:.1f} s", flush=True)
    longest = {"images": 0.02, "train": 3.0, "shards": 4.0, "merge": 0.5, "curve": 8.0}
    hit: Counter[tuple[str, int]] = Counter()
    for target in sorted(PLAN, key=order):
        for _ in range(5):
            found = kill_at(target, args.source, path, longest)
            if found is not None:
                hit[found] += 1
                print(f"killed at {found[0]}{f' of k = {found[1]}' if found[1] else ''}", flush=True)
                break
    if build(args.source, path).wait():
        raise SystemExit("a resumed build failed")
    report = pi.verify(path)
    print(f"{hit.total()} kills: " + ", ".join(f"{s}{k or ''} {n}" for (s, k), n in sorted(hit.items())))
    print(f"same lists: {same(path, reference)}; whole: {report.whole}", report.problems[:3])
    print("left beside it:", sorted(p.name for p in args.work.iterdir()))
    write_json(args.json, kills={f"{s}{k or ''}": n for (s, k), n in hit.items()}, whole=report.whole)
    on_dask(args.source, args.work)


if __name__ == "__main__":
    main()
