"""A training run that is killed at any point resumes to the same weights."""

import subprocess
import sys


def test_a_killed_run_resumes_from_any_point_to_the_same_weights(tmp_path):
    command = [sys.executable, "tests/networks/kill_training.py", tmp_path, "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    points = done.stdout.splitlines()
    assert len(points) > 5
    assert [point for point in points if not point.isdigit()] == []
