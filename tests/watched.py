"""Scripts in a process of their own, which measure their peak of anonymous memory; on Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

__all__ = ["linux_only", "run_watched"]

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports RssAnon")

BEFORE = """
import json, sys, threading, time

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def rise(work):
    peaks, done = [anonymous()], []
    before = peaks[0]

    def watch():
        while not done:
            peaks.append(max(peaks.pop(), anonymous()))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.append(True)
        watcher.join()
    return peaks[0] - before
"""


def run_watched(script: str, *arguments: object) -> Any:
    """Run a script in which `rise(function)` returns the bytes that a function takes; return what it prints.

    The script has its arguments in `sys.argv`, and prints JSON.
    """
    command = [sys.executable, "-c", BEFORE + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
