"""Settings of the machine: threads, devices, FAISS and callbacks for progress.

torch is imported before FAISS: both bring an OpenMP runtime, and with torch loaded first they share its
settings. All modules get FAISS from `load_faiss` or `require_faiss`, which import it on first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch

from patchindex.errors import DeviceError, InputError

__all__ = [
    "Progress",
    "cache_folder",
    "check_threads",
    "faiss_gpus",
    "full_precision",
    "load_faiss",
    "no_progress",
    "part_of",
    "pool",
    "require_faiss",
    "resolve_device",
    "threads",
]

MAX_THREADS = 1024
MAX_GPU_SELECTION = 2048  # FAISS's GPU side selects at most this many neighbours, and probes as many lists


class Progress(Protocol):
    """A callback for progress: `progress(stage, done, total)`."""

    def __call__(self, stage: str, done: float, total: float, /) -> None:
        """Receive that `done` of `total` units of a stage are completed."""


def no_progress(stage: str, done: float, total: float, /) -> None:
    """Ignore the progress."""


def part_of(progress: Progress, stage: str, first: float, last: float) -> Progress:
    """Return a callback whose stages are the part `first` to `last` of one stage, fractions in [0, 1]."""

    def report(_: str, done: float, total: float, /) -> None:
        progress(stage, first + (last - first) * done / total, 1.0)

    return report


@lru_cache(maxsize=1)
def load_faiss() -> Any:
    """Return the `faiss` module, imported on first use, or None when it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def cache_folder() -> Path:
    """Return the folder of caches: `PATCHINDEX_CACHE`, or `patchindex` in the user's cache folder."""
    own = os.environ.get("PATCHINDEX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchindex"


def require_faiss() -> Any:
    """Return the `faiss` module, or raise a DeviceError that says how to install it."""
    if (faiss := load_faiss()) is None:
        raise DeviceError(
            "faiss is not installed",
            where="patch index",
            remedy="pip install 'patchindex[cpu]', or 'patchindex[gpu]' on a CUDA machine",
        )
    return faiss


def faiss_gpus() -> int:
    """Return the number of GPUs that the installed FAISS can use; 0 for faiss-cpu."""
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def resolve_device(device: str | torch.device | None, *, needs_faiss: bool = False) -> torch.device:
    """Return the device of this name: `cpu` (also None) or an existing `cuda` device; else a DeviceError."""
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise DeviceError(
            f"unknown device {device!r}", parameter="device", remedy="use cpu or cuda"
        ) from None
    if found.type not in ("cpu", "cuda"):
        raise DeviceError(f"{found.type!r} is not supported", parameter="device", remedy="use cpu or cuda")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("torch finds no CUDA device", where=f"device {found}", remedy="use cpu")
        if found.index is not None and found.index >= torch.cuda.device_count():
            raise DeviceError(
                f"there are {torch.cuda.device_count()} CUDA devices",
                where=f"device {found}",
                remedy="use a lower number",
            )
        if needs_faiss and not faiss_gpus():
            raise DeviceError(
                "the installed faiss has no GPU support",
                where=f"device {found}",
                remedy="pip uninstall faiss-cpu, then pip install 'patchindex[gpu]'; or use cpu",
            )
    return found


def check_threads(n: int | None) -> None:
    """Refuse a number of threads below 1 or above 1024."""
    if n is not None and not 1 <= n <= MAX_THREADS:
        raise InputError(
            f"must be 1 to {MAX_THREADS}, got {n}", parameter="threads", remedy=f"use 1 to {os.cpu_count()}"
        )


@contextmanager
def threads(n: int | None) -> Iterator[int]:
    """Run torch and FAISS on `n` CPU threads inside the block, and yield n; None changes nothing."""
    check_threads(n)
    if n is None:
        yield torch.get_num_threads()
        return
    faiss = load_faiss()
    before = torch.get_num_threads(), None if faiss is None else faiss.omp_get_max_threads()
    torch.set_num_threads(n)
    if faiss is not None:
        faiss.omp_set_num_threads(n)
    try:
        yield n
    finally:
        torch.set_num_threads(before[0])
        if faiss is not None:
            faiss.omp_set_num_threads(before[1])


def pool(threads: int) -> ThreadPoolExecutor:
    """Return a shared pool of `threads` threads; starting new threads would take milliseconds.

    A task must not wait for other tasks of the same pool.
    """
    return _pool(threads, os.getpid())  # a forked process has none of the threads


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "patchindex-pool")


def _precisions() -> list[tuple[Any, str, Any]]:
    """Return torch's settings that allow rounding of float32 products, and the value that forbids it."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later
        return [(b.matmul, "fp32_precision", "ieee") for b in (torch.backends.cuda, torch.backends.mkldnn)]
    return [(torch.backends.cuda.matmul, "allow_tf32", False)]


_inside = 0  # running blocks of `full_precision`, in all threads
_before: list[Any] = []
_counting = Lock()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, even where TF32 or bfloat16 are allowed.

    The setting belongs to the process: the last block to end restores it.
    """
    global _inside, _before
    with _counting:
        if _inside == 0:
            _before = [getattr(settings, name) for settings, name, _ in _precisions()]
            for settings, name, exact in _precisions():
                setattr(settings, name, exact)
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if _inside == 0:
                for (settings, name, _), value in zip(_precisions(), _before, strict=True):
                    setattr(settings, name, value)
