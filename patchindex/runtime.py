"""Settings of the machine and of the process: threads, memory, FAISS, callbacks for progress.

torch is imported before FAISS: both bring an OpenMP runtime, and with torch loaded first they share its
settings. All modules get FAISS from `load_faiss` or `require_faiss`, which import it on first use.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock, RLock, Timer
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from patchindex.checks import is_whole
from patchindex.errors import DeviceError, InputError, PatchIndexWarning, warn

__all__ = [
    "PicklableLock",
    "Progress",
    "as_progress",
    "cache_folder",
    "check_threads",
    "faiss_gpus",
    "full_precision",
    "load_faiss",
    "memory_limit",
    "no_progress",
    "part_of",
    "plain_state",
    "pool",
    "require_faiss",
    "said_after",
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


def as_progress(progress: Progress | None) -> Progress:
    """Return a callback for progress, `no_progress` for None; refuse what cannot be called.

    Examples
    --------
    >>> as_progress(3)
    Traceback (most recent call last):
        ...
    patchindex.errors.InputError: progress: cannot be called, got 3; give a function of (stage, done, total)
    """
    if progress is not None and not callable(progress):
        raise InputError(
            f"cannot be called, got {progress!r:.40}",
            parameter="progress",
            remedy="give a function of (stage, done, total)",
        )
    return progress or no_progress


def part_of(progress: Progress, stage: str, first: float, last: float) -> Progress:
    """Return a callback whose stages are the part `first` to `last` of one stage, fractions in [0, 1]."""

    def report(_: str, done: float, total: float, /) -> None:
        progress(stage, first + (last - first) * done / total, 1.0)

    return report


@contextmanager
def said_after(seconds: float, say: Callable[[], object]) -> Iterator[None]:
    """Call `say` once, in another thread, if the block takes more than so many seconds."""
    timer = Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def check_threads(n: int | None) -> None:
    """Refuse a number of threads below 1 or above 1024, and several threads in a forked process."""
    if n is None:
        return
    most = 1 if _forked else MAX_THREADS
    if not is_whole(n) or not 1 <= n <= most:
        here = " in a forked process" if _forked else ""
        raise InputError(
            f"must be a whole number from 1 to {most}{here}, got {n!r}",
            parameter="threads",
            remedy=SPAWN if _forked else f"use 1 to {os.cpu_count()}",
        )


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use.

    The least of the machine's memory, the limit of the address space (`ulimit -v`) and the limits of the
    control groups (version 1 or 2) that the process is in, which containers and batch systems set. `root` is
    the folder that has `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    for file in _control_files(root):
        with suppress(OSError, ValueError):  # no such group here, or its limit is "max"
            limits.append(int(file.read_text()))
    return min(limits)


def _control_files(root: Path) -> Iterator[Path]:
    """Yield the files with the memory limits of a process's control groups and of the groups above."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A container may see its own group as the top: then the path of the group is not there.
        inside = Path(group.lstrip("/"))
        for part in (inside, *inside.parents):
            yield top / part / name


@contextmanager
def threads(n: int | None) -> Iterator[int]:
    """Run torch and FAISS on `n` CPU threads inside the block, and yield n; None changes nothing.

    A forked process has one thread.
    """
    check_threads(n)
    _use_one_thread_after_fork()
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


class PicklableLock:
    """A lock for values that threads share, taken by `with lock:`; the thread that has it may take it again.

    A copy of the lock in another process is a new lock.
    """

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[PicklableLock], tuple[()]]:
        return PicklableLock, ()


SPAWN = "start processes with the method 'spawn' of multiprocessing"
_forked, _warned = False, False


def _note_fork() -> None:
    """Forget the parent's other threads, which a forked process does not have."""
    global _forked, _inside, _counting
    _forked, _inside, _counting = True, min(_inside, 1), Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _use_one_thread_after_fork() -> None:
    """Set one thread in a forked process: OpenMP would wait for ever for threads of the parent."""
    global _warned
    if not _forked:
        return
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        if not _warned:
            warning = PatchIndexWarning("a forked process computes on one thread", remedy=SPAWN)
            warn(warning)
        _warned = True
    if (faiss := load_faiss()) is not None:
        faiss.omp_set_num_threads(1)


class _Setting(NamedTuple):
    """A setting of the process, and the value that it has inside `full_precision`."""

    get: Callable[[], Any]
    set: Callable[[Any], None]
    wanted: Any


def _settings() -> list[_Setting]:
    """Return torch's settings that allow rounding of float32 products, and its default type."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later
        precisions = [
            (b.matmul, "fp32_precision", "ieee") for b in (torch.backends.cuda, torch.backends.mkldnn)
        ]
    else:
        precisions = [(torch.backends.cuda.matmul, "allow_tf32", False)]  # type: ignore[list-item]
    return [
        _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        *(_Setting(partial(getattr, b, name), partial(setattr, b, name), v) for b, name, v in precisions),
    ]


_inside = 0  # running blocks of `full_precision`, in all threads
_before: list[Any] = []
_counting = Lock()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, even where TF32 or bfloat16 are allowed.

    The settings belong to the process: the last block to end restores them.
    """
    global _inside, _before
    _use_one_thread_after_fork()
    with _counting:
        if _inside == 0:
            settings = _settings()
            _before = [setting.get() for setting in settings]
            for setting in settings:
                setting.set(setting.wanted)
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if _inside == 0:
                for setting, value in zip(_settings(), _before, strict=True):
                    setting.set(value)


# NumPy's defaults: a program that raises at each underflow gets the same numbers as any other.
ERRORS: dict[str, Any] = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

AUTOCAST = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]


@contextmanager
def plain_state() -> Iterator[None]:
    """Compute inside the block as if the program around had changed no settings.

    Switched off: `torch.autocast`, another default type or device of torch, lower precision of float32
    products, and errors that `numpy.seterr` raises. Also a decorator.
    """
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        stack.enter_context(np.errstate(**ERRORS))
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # `torch.get_default_device` of torch 2.4 does not know of a block `with torch.device(...)`.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
