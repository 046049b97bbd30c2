"""Builds that are killed at any point lose nothing, and resume to the same store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kill_points.py"


@pytest.mark.parametrize("operation", ["build", "overwrite", "append", "add_scales"])
def test_a_killed_operation_resumes_from_any_point(tmp_path, operation):
    command = [sys.executable, SCRIPT, operation, tmp_path, "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    points = done.stdout.splitlines()
    assert len(points) > 10
    assert [point for point in points if not point.isdigit()] == []
