"""Progress bars of stages."""

import pytest
from patchindex_cli.progress import Stages
from rich.progress import Progress


@pytest.fixture
def progress():
    return Progress(disable=True)


def test_a_stage_of_unknown_length_pulses_and_ends_with_the_next(progress):
    stages = Stages(progress)
    stages("training", 0, 40)
    (training,) = progress.tasks
    assert training.total is None  # rich lets the bar pulse
    assert not training.finished
    stages("assigning", 10, 40)
    assert training.finished
    assert training.percentage == 100
    assert training.finished_time is not None  # its clock has stopped
    assert not progress.tasks[1].finished


def test_a_stage_that_begins_at_zero_gets_its_length_later(progress):
    stages = Stages(progress)
    stages("sampling", 0, 1)
    stages("sampling", 0.25, 1)
    (sampling,) = progress.tasks
    assert (sampling.total, sampling.percentage) == (1, 25)
    stages("sampling", 1, 1)
    assert sampling.finished


def test_the_last_stage_ends(progress):
    stages = Stages(progress)
    stages("training", 0, 40)
    stages.end()
    assert progress.finished
