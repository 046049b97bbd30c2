"""Work in forked processes, which may be killed before they change a file.

A script that uses this module must fork before torch starts threads, so it is a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from numba.core.registry import cpu_target

from patchindex.runtime import load_faiss

__all__ = ["in_a_child", "killed_at", "load_libraries", "opens_to_write"]


def load_libraries() -> None:
    """Load what FAISS and Numba load on first use, and start no thread: a forked process has it then."""
    load_faiss()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def in_a_child(work: Callable[[], str]) -> str:
    """Return what a function returns in a forked process, or "killed" if a signal ended the process.

    Raises RuntimeError with the traceback of the process when the function raised.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            result = work()
        except BaseException:
            result, status = traceback.format_exc(), 1
        with os.fdopen(writing, "w") as pipe:
            pipe.write(result)
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    if status:
        raise RuntimeError(f"a forked process failed:\n{result}")
    return result


def killed_at(point: int, is_change: Callable[[str, tuple[Any, ...]], bool], work: Callable[[], Any]) -> str:
    """Kill this process before change number `point` of `work`, from 1 on; return the number of changes.

    `is_change` says which audit events are changes, by their name and arguments. Nothing kills at point 0.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if is_change(event, arguments):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()
    return str(count)


def opens_to_write(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether an audit event opens a file to write to it."""
    flags = arguments[2] if event == "open" else 0
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
