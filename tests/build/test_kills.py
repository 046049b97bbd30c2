"""Builds that are killed: nothing is lost, and what is resumed ends as if it had not been."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("operation", ["build", "overwrite", "append", "add_scales"])
def test_a_killed_operation_is_resumed_from_wherever_it_was(tmp_path, operation):
    command = [sys.executable, "tests/kill_points.py", operation, tmp_path, "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    points = done.stdout.splitlines()
    assert len(points) > 10
    assert [point for point in points if not point.isdigit()] == []
