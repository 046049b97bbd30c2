"""Compile kernels, and keep their machine code in a cache that edits of any kernel file renew.

Numba's own cache looks only at the file of the compiled function, but most code of a kernel is inlined from
other files. Here the name of the cache folder is a hash of all files of `patchindex.kernels` and of the
versions that compile them. A file in the folder is written once and never changed, so an edited helper, or a
clone with other kernels, never runs old machine code. Clones with equal kernels share one folder.

    PARENT/                             NUMBA_CACHE_DIR, else kernels/ in patchindex's cache folder,
                                        else __pycache__ beside this file
      patchindex-kernels-HASH/          its modification time says when a process last started with it
        MODULE.FUNCTION-HASH            SHA-256 of the rest, then numba's pickle; the hash in the name is of
                                        the signature and the processor

A process that makes a new folder removes old folders, but the newest `KEPT` and all folders of the last day.
A process that uses a removed folder is not disturbed: its machine code is in memory, and a kernel that it
has not loaded yet is compiled again. Where no parent can be written to, every process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import njit
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from patchindex.errors import InputError, PatchIndexWarning, warn
from patchindex.runtime import cache_folder

__all__ = ["compiled", "inlined", "lean"]

PREFIX = "patchindex-kernels-"
KEPT = 8  # cache folders, of 2 MB each
DAY = 24 * 3600  # seconds
CHECKSUM_BYTES = 32

if config.DISABLE_JIT:
    raise InputError(
        "is set: the kernels would run as plain Python, a thousand times slower",
        where="NUMBA_DISABLE_JIT",
        remedy="unset it before Python starts",
    )

# Numba counts references to the arrays of every tuple that is passed on, ten atomic additions per call,
# unless it is told that the function allocates and frees nothing.
inlined = njit(forceinline=True, error_model="numpy", _nrt=False)


def compiled(function: Callable[..., None], **settings: bool) -> Any:
    """Compile a kernel for the processor at hand, or load it from the cache."""
    kernel = njit(nogil=True, error_model="numpy", **settings)(function)
    if FOLDER is not None:
        kernel._cache = _KernelCache(function, FOLDER)
    return kernel


lean = partial(compiled, _nrt=False)  # for a kernel that allocates nothing


class _KernelCache(NullCache):
    """The cached machine code of one kernel."""

    def __init__(self, function: Callable[..., None], folder: Path) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._folder = folder

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, signature: Any, target: Any) -> Any:
        target.refresh()
        try:
            content = self._file(signature, target.codegen()).read_bytes()
        except OSError:  # not compiled yet
            return None
        code = content[CHECKSUM_BYTES:]
        if hashlib.sha256(code).digest() != content[:CHECKSUM_BYTES]:  # damaged: compiled again
            return None
        return CompileResult._rebuild(target, *pickle.loads(code))

    def save_overload(self, signature: Any, result: Any) -> None:
        if result.library.has_dynamic_globals:  # addresses that are wrong in another process
            return
        code = dumps(result._reduce())
        file = self._file(signature, result.codegen)
        unfinished = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._folder.mkdir(exist_ok=True)  # another process may have removed it
            unfinished.write_bytes(hashlib.sha256(code).digest() + code)
            unfinished.replace(file)
        except OSError as error:
            warning = PatchIndexWarning(
                f"compiled kernels cannot be kept ({error})",
                where=self._folder,
                remedy="set NUMBA_CACHE_DIR to a folder with free space, or the next process compiles again",
            )
            warn(warning)

    def _file(self, signature: Any, codegen: Any) -> Path:
        key = hashlib.sha256(f"{signature} {codegen.magic_tuple()}".encode()).hexdigest()[:16]
        return self._folder / f"{self._name}-{key}"


def _fingerprint() -> str:
    """Return a hash of the kernels' files, and of the versions that their machine code depends on."""
    digest = hashlib.sha256(f"{sys.version} {numba.__version__} {llvmlite.__version__}".encode())
    for file in sorted(files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".pyc")):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _parents() -> Iterator[Path]:
    """Yield the folders that may hold the cache folder, the preferred one first."""
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR)
    with suppress(RuntimeError):  # the user has no home folder
        yield cache_folder() / "kernels"
    yield Path(__file__).parent / "__pycache__"


def _make_folder() -> Path | None:
    """Make the cache folder, or return None where no parent can be written to."""
    for parent in _parents():
        folder = parent / f"{PREFIX}{_fingerprint()}"
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                os.utime(folder)
        except OSError:
            continue
        if is_new:
            _remove_old(parent)
        return folder
    return None


def _remove_old(parent: Path) -> None:
    with suppress(OSError):  # another process may remove the same folders
        used = {folder: folder.stat().st_mtime for folder in parent.glob(f"{PREFIX}*")}
        for folder in sorted(used, key=used.__getitem__, reverse=True)[KEPT:]:
            if used[folder] < time.time() - DAY:
                shutil.rmtree(folder, ignore_errors=True)


FOLDER = _make_folder()
