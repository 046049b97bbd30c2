"""Exact scans of training images in shards: each shard is scanned where it is, and the states are merged.

`DeviceShards` puts a shard on each of several devices of this machine. `patchindex.cluster.ImageShards` puts
the shards on the workers of a Dask cluster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import fields, replace
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchindex.exact.engine import scan, scan_parts
from patchindex.exact.parts import STAGE, check_bounds
from patchindex.exact.request import ScoreRequest
from patchindex.images.by_label import TrainingImages
from patchindex.images.on_device import in_root
from patchindex.runtime import Progress
from patchindex.softmax import SoftmaxState

__all__ = ["DeviceShards", "Shards", "in_tree", "merged", "scan_shard", "settings_of"]

T = TypeVar("T")

MERGED = 4  # states merged at a node of the tree
KEPT = ("training", "progress", "cache")  # of a request: the fields that the shards do not get
EVERY = 0.05  # seconds between two reports of progress


class Shards(ABC):
    """Training images in shards, which workers or devices hold."""

    @abstractmethod
    def check(self, training: TrainingImages) -> None:
        """Refuse training images that differ from the images of the shards."""

    @abstractmethod
    def scan(self, request: ScoreRequest) -> SoftmaxState:
        """Return the state of `exact.scan` for all images of the request."""


def settings_of(request: ScoreRequest) -> dict[str, Any]:
    """Return the fields of a request that the scan of a shard needs."""
    return {f.name: getattr(request, f.name) for f in fields(request) if f.name not in KEPT}


def scan_shard(shard: TrainingImages, settings: dict[str, Any]) -> SoftmaxState:
    """Return the state of a shard, for the `settings_of` a request."""
    return scan(ScoreRequest(shard, **settings))


def merged(states: Sequence[SoftmaxState]) -> SoftmaxState:
    """Return the merge of states of different images for the same pixels."""
    first, *others = states
    state = first.clone()
    for other in others:
        state.merge(other)
    return state


def in_tree(states: Sequence[T], merge: Callable[[Sequence[T]], T]) -> T:
    """Merge states, or futures of states, in a fixed order: four at a time, and then the results."""
    while len(states) > 1:
        states = [merge(states[i : i + MERGED]) for i in range(0, len(states), MERGED)]
    return states[0]


class DeviceShards(Shards):
    """The training images of each request, in equal shards on several devices of this machine.

    The images of a label are divided equally, too. A device may be named several times.

    Parameters
    ----------
    devices : sequence of torch.device

    Examples
    --------
    >>> from patchindex.geometry import Geometry
    >>> images = TrainingImages(np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8))
    >>> request = ScoreRequest(images, Geometry.of("ELS", 3, (8, 8)), torch.randn(1, 1, 8, 8), beta=0.5)
    >>> both = DeviceShards([torch.device("cpu")] * 2).scan(request)
    >>> torch.allclose(both.mean(), scan(request).mean(), atol=1e-5)
    True
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = tuple(devices)
        self._held: _Held | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the images, which come with each request."""
        return {**vars(self), "_held": None}

    def check(self, training: TrainingImages) -> None:
        """Accept any training images: they come with each request."""

    def scan(self, request: ScoreRequest) -> SoftmaxState:
        """Return the state of `exact.scan`, computed by all devices at the same time."""
        lo, hi = request.image_range
        return self.scan_parts(request, [0, hi - lo])[0]

    def scan_parts(self, request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
        """Return the states of `exact.scan_parts`: each device scans its images of each part."""
        check_bounds(request, bounds)
        works, parts = [], []
        for device, shard, numbers, places in self._shards(request):
            ends = np.searchsorted(places, bounds)
            filled = np.flatnonzero(np.diff(ends))  # a part may have no image on this device
            if len(filled):
                some = ScoreRequest(shard.select(_range_or_ids(numbers)), **self._settings(request, device))
                works.append((some, np.unique(ends).tolist()))
                parts.append(torch.from_numpy(filled))
        states = []
        for mine, state in zip(parts, _scan_all(works, request), strict=True):
            every = SoftmaxState.empty(
                (len(bounds) - 1, *state.weight.shape[1:]), request.x.shape[1], request.x.device
            )
            every.write(mine, state)
            states.append(every)
        return in_tree(states, merged)

    def _shards(
        self, request: ScoreRequest
    ) -> Iterator[tuple[torch.device, TrainingImages, np.ndarray, np.ndarray]]:
        """Yield the devices with their shards, the numbers there of the request's images, and their places.

        Places count the images of the request from 0.
        """
        lo, hi = request.image_range
        training, numbers = in_root(request.training, slice(lo, hi))
        held = self._held
        if held is None or held.training is not training:
            held = self._held = _Held(training, len(self._devices))
        if isinstance(numbers, slice):
            numbers = np.arange(numbers.start, numbers.stop)
        owners = held.owners[numbers]
        for i, (device, shard) in enumerate(zip(self._devices, held.shards, strict=False)):
            places = np.flatnonzero(owners == i)
            if len(places):
                yield device, shard, held.numbers[numbers[places]], places

    def _settings(self, request: ScoreRequest, device: torch.device) -> dict[str, Any]:
        """Return the settings of a device's scan: devices that are the same share the memory."""
        pixels = request.pixels
        if isinstance(pixels, Tensor):
            pixels = pixels.to(device)
        elif pixels is not None:
            pixels = [torch.as_tensor(numbers, device=device) for numbers in pixels]
        return {
            **settings_of(request),
            "x": request.x.to(device),
            "pixels": pixels,
            "label": None,
            "memory": max(1, request.memory // self._devices.count(device)),
        }


class _Held:
    """Training images in shards: image j is image `numbers[j]` of shard `owners[j]`."""

    def __init__(self, training: TrainingImages, parts: int) -> None:
        self.training = training
        every = np.arange(len(training))
        if training.labels is None:
            mine = np.array_split(every, parts)  # ranges are quick to read
        else:
            mine = [every[i::parts] for i in range(parts)]
        self.owners, self.numbers = np.empty_like(every), np.empty_like(every)
        self.shards: list[TrainingImages] = []
        for i, some in enumerate(mine):
            if not len(some):  # there are fewer images than parts
                continue
            self.owners[some], self.numbers[some] = i, np.arange(len(some))
            selected = training.select(_range_or_ids(some))
            # Not the selection itself, which would share a device's copy of all images.
            self.shards.append(TrainingImages(selected.source, source_ids=selected.source_ids))


def _range_or_ids(numbers: np.ndarray) -> slice | np.ndarray:
    """Return ascending numbers as a slice if there are no gaps: a slice is quicker to read."""
    first = int(numbers[0])
    gapless = len(numbers) == numbers[-1] - first + 1 and bool((np.diff(numbers) == 1).all())
    return slice(first, first + len(numbers)) if gapless else numbers


def _scan_all(works: Sequence[tuple[ScoreRequest, list[int]]], request: ScoreRequest) -> list[SoftmaxState]:
    """Call `scan_parts` for all devices at the same time; return the states on the device of `request`."""
    shares, stopped = [0.0] * len(works), Event()
    with ThreadPoolExecutor(len(works), "patchindex-device") as threads:
        states = [
            threads.submit(scan_parts, replace(some, progress=_share(shares, i, stopped)), bounds)
            for i, (some, bounds) in enumerate(works)
        ]
        try:
            pending = {*states}
            while pending:
                done, pending = wait(pending, EVERY, FIRST_EXCEPTION)
                for state in done:
                    state.result()
                # Callbacks run in the caller's thread only.
                request.progress(STAGE, sum(shares) / len(shares), 1.0)
        except BaseException:
            stopped.set()
            raise
    return [state.result().to(request.x.device) for state in states]


class _StoppedError(Exception):
    """The scan of another device failed, or the caller was interrupted."""


def _share(shares: list[float], i: int, stopped: Event) -> Progress:
    """Return a callback that notes the completed share of scan i, and ends the scan once it is stopped."""

    def report(_: str, done: float, total: float, /) -> None:
        if stopped.is_set():
            raise _StoppedError
        shares[i] = done / total

    return report
