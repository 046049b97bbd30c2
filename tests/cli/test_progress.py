"""Progress as bars, and as lines without a terminal."""

import re
from queue import Queue
from time import monotonic

import pytest
from commands import DATA, run
from patchindex_cli.progress import Bars, Whole, lines
from rich.progress import Progress


def await_line(echoed, line):
    """Wait for a line, among others that are printed all the time; fail after a minute."""
    deadline = monotonic() + 60
    while (printed := echoed.get(timeout=60)) != line:
        assert monotonic() < deadline, f"the last line is {printed!r}"


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
            await_line(echoed, line)  # also while a stage does not report


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
            await_line(echoed, line)


def test_the_time_left_of_a_resumed_stage_counts_the_resumed_work_only():
    now = [0.0]
    echoed = Queue()
    with lines(echoed.put, seconds=0.001, clock=lambda: now[0]) as show:
        for done, time, line in ((70, 0.0, "training: 70 %"), (80, 600.0, "training: 80 %, 20 min left")):
            now[0] = time
            show("training", done, 100)
            await_line(echoed, line)


def test_a_build_without_a_terminal_prints_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("patchindex_cli.progress.SECONDS_PER_LINE", 0.001)
    args = ("--limit", 20, "--scales", "3", "--no-tune", "-o", tmp_path / "s.zarr")
    printed = run("build", DATA, *args).stderr.splitlines()
    assert all(re.fullmatch(r".+: \d+ %(; \d+ % of all stages, \d+ (s|min) left)?", line) for line in printed)
    assert any("of all stages" in line for line in printed)
    assert any(line.startswith("k = 3: ") for line in printed)


def test_the_stages_of_a_build_have_those_of_tuning(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(Whole, "expect", lambda _, seconds: found.append(list(seconds)))
    args = ("--limit", 20, "--scales", "3")
    for name, more in (("few", ()), ("tuned", ("--tune",))):
        run("build", DATA, *args, *more, "-o", tmp_path / name)
    few, tuned = found
    assert tuned == [*few, "images to tune by", "k = 3: operating curve"]


STAGES = {"images": 10.0, "training": 30.0, "assigning": 60.0}


@pytest.fixture
def clocked():
    """The whole of three stages, and the clock that it reads."""
    now = [0.0]
    whole = Whole(lambda: now[0])
    whole.expect(STAGES)
    return whole, now


def test_the_time_left_of_all_stages_follows_from_the_stages_so_far(clocked):
    whole, now = clocked
    assert whole.state() is None  # before the first report
    whole("images", 0, 5)
    assert whole.state() == (0, 100)  # as expected
    for time, stage, done, share, left in (
        (20.0, "images", 5, 0.1, 90 * 22 / 12),  # twice as slow
        (50.0, "training", 20, 0.25, 75 * 52 / 27),
        (100.0, "assigning", 0, 0.4, 60 * 102 / 42),
    ):
        now[0] = time
        whole(stage, done, 40 if stage == "training" else 5)
        assert whole.state() == pytest.approx((share, left))


def test_a_stage_that_does_not_report_moves_but_does_not_end(clocked):
    whole, now = clocked
    now[0] = 10.0
    whole("images", 5, 5)
    assert whole.state() == (0.1, 90)
    now[0] = 25.0  # the next stage has begun, and has not reported
    assert whole.state() == pytest.approx((0.25, 75))
    whole("training", 0, 1)
    assert whole.state()[0] == 0.25  # no step back
    now[0] = 10_000.0
    assert whole.state()[0] == pytest.approx(0.1 + 0.9 * 0.3)


def test_a_resumed_build_counts_the_work_of_its_own(clocked):
    whole, now = clocked
    whole("assigning", 30, 60)
    now[0] = 30.0
    whole("assigning", 45, 60)
    assert whole.state() == pytest.approx((0.85, 15 * 32 / 17))


def test_other_stages_end_all_stages_only_after_the_last(clocked):
    whole, _ = clocked
    whole("training", 1, 2)
    whole("waiting for another process", 0, 1)
    assert whole.state() is not None
    whole("assigning", 1, 1)
    whole("tuning", 0, 1)
    assert whole.state() is None


def test_the_bar_of_all_stages_comes_first_and_ends_with_them(progress):
    bars = Bars(progress)
    bars.expect(STAGES)
    bars("images", 2, 4)
    whole, images = progress.tasks
    assert (whole.description, images.description) == ("all stages", "images")
    assert whole.completed == pytest.approx(0.05, abs=0.01)
    assert whole.fields["left"] > 0
    bars("assigning", 30, 60)
    assert images.finished
    assert not whole.finished
    bars("tuning", 0, 1)
    assert whole.finished
    assert not progress.tasks[-1].finished


def test_lines_have_the_time_left_of_all_stages():
    now, echoed = [0.0], Queue()
    with lines(echoed.put, seconds=0.001, clock=lambda: now[0]) as show:
        show.expect(STAGES)
        show("images", 5, 5)
        now[0] = 10.0
        show("training", 1, 2)
        await_line(echoed, "training: 50 %; 25 % of all stages, 30 s left")
