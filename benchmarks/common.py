"""Shared parts of the benchmarks: arguments, times taken in turn, memory, tables and JSON."""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import patchindex as pi
from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import cosine

DATA = Path(__file__).parent / "data"
TRAJECTORY, FINALS = DATA / "cifar10_exact_trajectory.npz", DATA / "cifar10_exact_finals.npz"
LOCALITY = "cifar10-resnet-circular"
LEAST = 0.3  # seconds: a way that is faster is called several times a round


def arguments(
    doc: str | None, *, source: bool = True, work: bool = False, repeats: int | None = None
) -> argparse.ArgumentParser:
    """Return a parser with `doc` as its description, --json, and the arguments that are asked for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if source:
        parser.add_argument("source", metavar="IMAGES", type=Path)
    if work:
        parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for new files")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def variant(images: np.ndarray, i: int) -> np.ndarray:
    """Return image i of a larger data set: the images, their mirror images, and shifted copies of both."""
    copy, n = divmod(i, len(images))
    image, shift = images[n], 2 * (copy // 2)
    if copy % 2:
        image = image[:, ::-1]
    if shift:
        edges = ((shift, shift), (shift, shift), *((0, 0),) * (image.ndim - 2))
        image = np.pad(image, edges, mode="reflect")[2 * shift :, : -2 * shift]
    return np.ascontiguousarray(image)


def store_of(source: Path, n: int, work: Path, scales: Sequence[int] | None = None) -> pi.PatchIndex:
    """Return a store of n images, with the scales of `LOCALITY` or others; build a missing one in `work`.

    The images are the first n of the source. If the source has fewer, its mirrored images, its images
    upside down, and its images turned by 180 degrees follow. They are no shifted copies, so patches do not
    simply repeat.
    """
    name = "-".join(map(str, [n, *(scales or [])]))
    if n > len(pi.open_images(source)):
        name += "-turned"
    path = work / f"cifar10-{name}.zarr"
    if not path.exists():
        images = pi.open_images(source, limit=n)
        if len(images) < n:
            few = images[:]
            images = np.concatenate([few, few[:, :, ::-1], few[:, ::-1], few[:, ::-1, ::-1]])[:n]
            if len(images) < n:
                raise SystemExit(f"{source}: {len(few)} images make {len(images)}, and {n} are needed")
        pi.build_index(images, path, scales, locality=LOCALITY, resume=True)
    return pi.open_index(path)


@dataclass(frozen=True)
class Times:
    """Seconds of a call, for each way and round, and the last result of each way."""

    seconds: dict[str, np.ndarray]
    results: dict[str, Any]

    def median(self, name: str) -> float:
        """Return the median time of a way."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> float:
        """Return the median, over rounds, of the time of one way divided by the time of another."""
        return float(np.median(self.seconds[name] / self.seconds[to]))


def alternate(
    ways: Mapping[str, Callable[[], Any]], repeats: int, warm: Mapping[str, Callable[[], Any]] | None = None
) -> Times:
    """Time all ways in turn, `repeats` times, after one call of each that does not count.

    For slow ways, `warm` has shorter calls that do not count; each way is then called once a round.

    A fast way is called for at least `LEAST` seconds a round, after one call that does not count. Otherwise
    the caches, the spinning threads and the memory that went cold during the way before it would slow it down
    more than a slow way.
    """
    results, calls, seconds = {}, dict.fromkeys(ways, 1), {name: [] for name in ways}
    for name, way in ways.items():
        if warm is not None:
            warm[name]()
            continue
        start = time.perf_counter()
        results[name] = way()
        calls[name] = max(1, math.ceil(LEAST / (time.perf_counter() - start)))
    for _ in range(repeats):
        for name, way in ways.items():
            if calls[name] > 1:
                way()
            start = time.perf_counter()
            for _ in range(calls[name]):
                results[name] = way()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return Times({name: np.array(taken) for name, taken in seconds.items()}, results)


def report(rows: list[dict[str, Any]], formats: dict[str, str], heading: str = "") -> None:
    """Print rows as a table; `formats` names the columns and gives the format of each."""
    cells = [list(formats)]
    for row in rows:
        cells.append(
            ["" if row.get(key) is None else format(row[key], form) for key, form in formats.items()]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if heading:
        print(f"\n{heading}")
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(end="", flush=True)


def write_json(path: Path | None, **found: Any) -> None:
    """Write the results of a benchmark to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps({"threads": torch.get_num_threads(), **found}, indent=2) + "\n")


def noisy(images: np.ndarray, t: float, seed: int = 0) -> Tensor:
    """Return images (n, H, W, C) of uint8 with the noise of time t: (n, C, H, W), float32."""
    beta = cosine(t)
    clean = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(clean.shape))
    return ((1 - beta) ** 0.5 * clean + beta**0.5 * noise).float()


def some_pixels(x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the raster numbers of `count` random pixels of an image of x, ascending."""
    return torch.from_numpy(
        np.sort(np.random.default_rng(seed).choice(x[0, 0].numel(), count, replace=False))
    )


def exact_mean(
    training: TrainingImages, geometry: Geometry, x: Tensor, beta: float, **settings: Any
) -> Tensor:
    """Return the exact posterior mean, with channels last: (B, H, W, C), or (M, C) with `pixels`."""
    return scan(ScoreRequest(training, geometry, x, beta, **settings)).mean()


def anonymous_mebibytes(pid: int | str = "self") -> float:
    """Return the anonymous resident memory (RssAnon) of a process in MiB; 0 once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


class Peak:
    """The largest RssAnon of this process while `watched` runs, and RssAnon before; both in MiB."""

    def __init__(self) -> None:
        self.before = self.mebibytes = anonymous_mebibytes()


@contextmanager
def watched(every: float) -> Iterator[Peak]:
    """Look at the memory of this process every so many seconds."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            peak.mebibytes = max(peak.mebibytes, anonymous_mebibytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()
