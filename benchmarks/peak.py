"""Seconds and peak anonymous memory (RssAnon: mapped files are not counted) of a command. Linux only.

python benchmarks/peak.py patchindex sample STORE -n 8 -o DIR
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """What a command took: wall time, and the most of its RssAnon seen every 20 ms."""

    seconds: float
    mebibytes: float


def anonymous_mebibytes(pid: int | str = "self") -> float:
    """Anonymous resident memory of a process; 0 once it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def run_measured(command: Sequence[object]) -> Measured:
    """Run a command to its end; a failing one raises `CalledProcessError`."""
    start, most = time.perf_counter(), 0.0
    process = subprocess.Popen([str(part) for part in command])
    while process.poll() is None:
        most = max(most, anonymous_mebibytes(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Measured(time.perf_counter() - start, most)


if __name__ == "__main__":
    measured = run_measured(sys.argv[1:])
    print(f"{measured.seconds:.1f} s, peak RssAnon {measured.mebibytes:.0f} MiB")
