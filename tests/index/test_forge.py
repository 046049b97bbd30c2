"""Forged stores whose checksums are right: each is refused, or gives the right picture."""

from __future__ import annotations

import subprocess
import sys

CASES = 64


def test_forged_stores_are_refused_or_right(tmp_path):
    """More by hand: `python tests/forge.py 10000`."""
    command = [sys.executable, "tests/forge.py", str(CASES), "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES} cases, 0 faults" in done.stdout
