"""The uses of a forged store, and their outcomes; `forge.py` makes the stores."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from click.testing import CliRunner
from patchindex_cli import main as command_line
from PIL import Image

import patchindex as pi
from patchindex.errors import PatchIndexError
from patchindex.estimators import AutoPolicy

__all__ = ["Base", "a_curve", "bases", "in_a_child", "use"]

SECONDS = 30  # until a process hangs: others use the machine too
MEMORY = 1 << 30
T = 0.4
EVERYTHING: dict[str, dict[str, Any]] = {
    "exact": {},
    "auto": {"tolerance": 1e-6, "probes": 8, "candidates": 16, "policy": AutoPolicy(cost_limit=1e9)},
    "topk": {"probes": 10**4, "candidates": 10**5},
}
APART = 2e-3  # of pictures: logits are float32


class Base(NamedTuple):
    """A store that is right, its labels to draw, and the exact pictures."""

    path: Path
    draws: list[tuple[int, int | None]]  # scale and label
    pictures: list[np.ndarray]


def bases(folder: Path) -> list[Base]:
    """Build the stores that are forged: of both machines with an index, with labels, and with more images.

    The store of ELS is built from resized PNG files, and images are appended to it.
    """
    with np.load(Path(__file__).parents[1] / "data" / "fashion_mnist_6k.npz") as data:
        images, labels = data["images"][:24], data["labels"][:24].astype(int) // 4
    cropped = images[:, 8:18, 8:18].copy()
    labelled = pi.build_index(
        cropped, folder / "bbELS.zarr", [3], labels, machine="bbELS", locality=[3], lists=30
    )
    labelled.scale(3).save_curve(a_curve())
    draws: list[tuple[int, int | None]] = [(3, None), (3, 1)]
    found = [Base(folder / "bbELS.zarr", draws, draw(pi.open_index(folder / "bbELS.zarr"), "exact", draws))]

    first, more = folder / "first", folder / "more"
    for part, some in ((first, images[:16]), (more, images[16:])):
        part.mkdir()
        for i, image in enumerate(some):
            Image.fromarray(image).save(part / f"{part.name} {i:02}.png")
    path = folder / "ELS.zarr"
    pi.build_index(pi.open_images(first, resize=10), path, [3, 5], machine="ELS", locality=[3, 5], lists=30)
    appended = pi.append(path, more)
    appended.scale(3).save_curve(a_curve())
    draws = [(3, None), (5, None)]
    found.append(Base(path, draws, draw(pi.open_index(path), "exact", draws)))
    return found


def a_curve() -> dict[str, Any]:
    sizes = {"beta": 0.3, "probes": 8, "candidates": 16, "seconds": 1e-5}
    near = {**sizes, "again": 1e-5, "variance": [1e-4, 1e-3], "missed": [0.0] * 10}
    costs = {"exact": 1.0, "scan": 1e-3, "single": 1e-2, "least": 0.1}
    return {"version": 2, "images": 24, **costs, "near": [near], "top": [{**sizes, "mass": 0.9}]}


def draw(index: pi.PatchIndex, estimator: str, draws: list[tuple[int, int | None]]) -> list[np.ndarray]:
    machine = pi.ScoreMachine(index, estimator=estimator, **EVERYTHING[estimator])
    height, width = index.training.size
    x = np.random.default_rng(0).standard_normal((1, index.training.channels, height, width))
    noisy = torch.from_numpy(x).float()
    return [machine.posterior_mean(noisy, T, k=k, label=label).mean.numpy() for k, label in draws]


def use(path: Path, base: Base, is_same: bool) -> str:
    """Return the outcome of using a mutant; `is_same` says that its images and labels are the base's."""
    warnings.simplefilter("ignore")
    whole, refusals = False, []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except PatchIndexError as error:
            refusals.append(str(error))
            return None

    if (report := attempt(lambda: pi.verify(path))) is not None:
        whole = report.whole
    shown = CliRunner().invoke(command_line, ["info", str(path)])
    if shown.exit_code not in (0, 1, 2) or not isinstance(shown.exception, SystemExit | None):
        return f"traceback: info: {shown.exception!r}"
    attempt(lambda: [pi.open_index(path).training.numbered(i) for i in range(24)])
    drawn = {}
    for estimator in EVERYTHING:
        found = attempt(lambda estimator=estimator: draw(pi.open_index(path), estimator, base.draws))
        if found is not None:
            drawn[estimator] = found
    if whole and refusals:
        return f"wrong: verify says whole, but {refusals[0]}"
    wanted = base.pictures if is_same else drawn.get("exact")
    for estimator, pictures in drawn.items():
        for picture, right in zip(pictures, wanted or pictures, strict=True):
            trusted = whole or estimator != "topk"  # topk lacks the patches that no list has
            if not np.isfinite(picture).all() or abs(picture).max() > 1 + APART:
                return f"wrong: {estimator} draws {picture.min()} to {picture.max()}"
            if trusted and picture.shape == right.shape and abs(picture - right).max() > APART:
                return f"wrong: {estimator} is {abs(picture - right).max():.3g} apart"
    return "right" if whole else "right, and refused by verify" if drawn else "refused"


def in_a_child(work: Callable[[], str]) -> str:
    """Return what a function returns in a forked process, or the way in which the process failed."""
    reading, writing = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 3 * MEMORY, size + 3 * MEMORY))
            result = work()
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            result = f"traceback: {error!r} in {where.filename}:{where.lineno}"
        os.write(writing, result.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(writing)
    started = time.monotonic()
    ready = select.select([reading], [], [], SECONDS)[0]
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, errors="replace") as pipe:
        result = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if not ready:
        return f"hang: {time.monotonic() - started:.0f} s"
    if os.WIFSIGNALED(status):
        return f"signal: {signal.Signals(os.WTERMSIG(status)).name}"
    if (usage.ru_maxrss - before) * 1024 > MEMORY:
        return f"memory: {(usage.ru_maxrss - before) >> 10} MiB"
    return result
