"""Seconds and peak anonymous memory (RssAnon, which does not count mapped files) of a command. Linux only.

python benchmarks/peak.py patchindex sample STORE -n 8 -o DIR
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from common import anonymous_mebibytes


def run_measured(command: Sequence[object]) -> str:
    """Run a command to its end, look at its RssAnon every 20 ms, and say what it took."""
    start, most = time.perf_counter(), 0.0
    process = subprocess.Popen([str(part) for part in command])
    while process.poll() is None:
        most = max(most, anonymous_mebibytes(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return f"{time.perf_counter() - start:.1f} s, peak RssAnon {most:.0f} MiB"


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] else 2)
    print(run_measured(sys.argv[1:]))
