"""The bars that are shown for stages."""

import pytest
from patchindex_cli.progress import Stages
from rich.progress import Progress


@pytest.fixture
def progress():
    return Progress(disable=True)


def test_a_stage_of_unknown_length_pulses_and_ends_with_the_next(progress):
    stages = Stages(progress)
    stages("k=3 training 845 lists", 0, 40)
    (training,) = progress.tasks
    assert training.total is None  # rich lets the bar pulse
    assert not training.finished
    stages("k=3 assigning patches", 10, 40)
    assert training.finished
    assert training.percentage == 100
    assert training.finished_time is not None  # its clock has stopped
    assert not progress.tasks[1].finished


def test_a_stage_that_begins_with_nothing_has_a_length_once_it_tells(progress):
    stages = Stages(progress)
    stages("sampling", 0, 1)
    stages("sampling", 0.25, 1)
    (sampling,) = progress.tasks
    assert (sampling.total, sampling.percentage) == (1, 25)
    stages("sampling", 1, 1)
    assert sampling.finished


def test_the_last_stage_ends_too(progress):
    stages = Stages(progress)
    stages("k=3 training 845 lists", 0, 40)
    stages.end()
    assert progress.finished


def test_scales_are_named_alike(progress):
    stages = Stages(progress)
    for stage in ("k=3 training 845 lists", "k = 3: operating curve", "k=11 lists", "checksums"):
        stages(stage, 1, 2)
    named = [task.description for task in progress.tasks]
    assert named == ["k = 3: training 845 lists", "k = 3: operating curve", "k = 11: lists", "checksums"]
