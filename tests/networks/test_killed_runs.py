"""A training run that is killed at any point resumes to the same weights."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "kill_training.py"


def test_a_killed_run_resumes_from_any_point_to_the_same_weights(tmp_path):
    command = [sys.executable, SCRIPT, tmp_path, "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    points = done.stdout.splitlines()
    assert len(points) > 5
    assert [point for point in points if not point.isdigit()] == []
