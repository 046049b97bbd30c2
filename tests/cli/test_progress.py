"""Progress as bars, and as lines without a terminal."""

import re
from queue import Queue

import pytest
from commands import DATA, run
from patchindex_cli.progress import Bars, lines
from rich.progress import Progress


@pytest.fixture
def progress():
    return Progress(disable=True)


def test_a_stage_of_unknown_length_pulses_and_ends_with_the_next(progress):
    bars = Bars(progress)
    bars("training", 0, 40)
    (training,) = progress.tasks
    assert training.total is None  # rich lets the bar pulse
    assert not training.finished
    bars("assigning", 10, 40)
    assert training.finished
    assert training.percentage == 100
    assert training.finished_time is not None  # its clock has stopped
    assert not progress.tasks[1].finished


def test_a_stage_that_begins_at_zero_gets_its_length_later(progress):
    bars = Bars(progress)
    bars("sampling", 0, 1)
    bars("sampling", 0.25, 1)
    (sampling,) = progress.tasks
    assert (sampling.total, sampling.percentage) == (1, 25)
    bars("sampling", 1, 1)
    assert sampling.finished


def test_the_last_stage_ends(progress):
    bars = Bars(progress)
    bars("training", 0, 40)
    bars.end()
    assert progress.finished


def test_without_a_terminal_the_progress_is_a_line_every_few_seconds():
    echoed = Queue()
    with lines(echoed.put, seconds=0.001) as show:
        for done, line in ((0, "k = 3: encoding patches: 0 %"), (4, "k = 3: encoding patches: 40 %")):
            show("k = 3: encoding patches", done, 10)
            while echoed.get(timeout=60) != line:  # also while a stage does not report
                pass


def test_lines_of_a_long_stage_have_the_time_left():
    now = [0.0]
    echoed = Queue()
    with lines(echoed.put, seconds=0.001, clock=lambda: now[0]) as show:
        for done, time, line in (
            (0, 0.0, "images: 0 %"),
            (20, 90.0, "images: 20 %, 6 min left"),
            (50, 36000.0, "images: 50 %, 10 h left"),
        ):
            now[0] = time
            show("images", done, 100)
            while echoed.get(timeout=60) != line:
                pass


def test_the_time_left_of_a_resumed_stage_counts_the_resumed_work_only():
    now = [0.0]
    echoed = Queue()
    with lines(echoed.put, seconds=0.001, clock=lambda: now[0]) as show:
        for done, time, line in ((70, 0.0, "training: 70 %"), (80, 600.0, "training: 80 %, 20 min left")):
            now[0] = time
            show("training", done, 100)
            while echoed.get(timeout=60) != line:
                pass


def test_a_build_without_a_terminal_prints_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("patchindex_cli.progress.SECONDS_PER_LINE", 0.001)
    args = ("--limit", 20, "--scales", "3", "--no-tune", "-o", tmp_path / "s.zarr")
    printed = run("build", DATA, *args).stderr.splitlines()
    assert all(re.fullmatch(r".+: \d+ %", line) for line in printed)
    assert any(line.startswith("k = 3: ") for line in printed)
