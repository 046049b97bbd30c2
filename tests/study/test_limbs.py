"""Counts of features against locality."""

import csv
import json

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.study.counters import count_limbs, count_strokes, draw_figures
from patchindex.study.limbs import REFERENCE, count_features, replace_scales

LOCAL = [5, 5, 5, 5, 5]
SCHEDULES = {"local": LOCAL, "whole images": [31] * 5}


def ink(images):
    """Count the bright pixels."""
    return (images > 0).flatten(1).sum(1).numpy()


@pytest.fixture(scope="module")
def figures():
    return draw_figures(20)


def machines(figures, schedules=None):
    return {
        name: pi.ScoreMachine(figures, machine="LS", locality=scales)
        for name, scales in (schedules or SCHEDULES).items()
    }


@pytest.fixture(scope="module")
def found(figures):
    return count_features(machines(figures), count_limbs, n=12, steps=5, reference=figures)


def test_whole_images_have_the_right_count_and_local_ones_less_often(found):
    summary = {row["name"]: row for row in found.summary()}
    assert found.settings["expected"] == 4
    assert summary[REFERENCE]["right"] == 1
    assert summary["whole images"]["right"] == 1
    assert summary["local"]["right"] < 0.8


def test_the_summary_agrees_with_the_rows(found):
    for row in found.summary():
        counts = np.array([each["count"] for each in found.rows if each["name"] == row["name"]])
        assert row["images"] == len(counts)
        assert row["mean"] == pytest.approx(counts.mean())
        assert row["fewer"] + row["right"] + row["more"] == pytest.approx(1)
        assert row["mean_low"] <= row["mean"] <= row["mean_high"]
        assert np.array_equal(counts, count_limbs(found.images[row["name"]]))


def test_denoisers_start_from_the_same_noise(figures, found):
    again = pi.sample(machines(figures)["local"], n=12, steps=5)
    assert (again.images - found.images["local"]).abs().max() < 1e-3  # rounding of float32 sums


def test_another_feature_is_counted_in_the_same_images(found):
    strokes = found.recount(count_strokes)
    assert strokes.settings["counter"] == "count_strokes"
    assert strokes.settings["expected"] == 1
    assert torch.equal(strokes.images["local"], found.images["local"])


def test_the_expected_count_stands_in_for_a_reference(figures):
    alone = count_features(machines(figures, {"local": LOCAL}), count_limbs, n=1, steps=2, expected=4)
    assert list(alone.counts()) == ["local"]


def test_files_and_figures_have_all_names(found, tmp_path):
    found.to_csv(tmp_path / "c.csv")
    found.to_json(tmp_path / "c.json")
    with (tmp_path / "c.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found.rows) == 20 + 2 * 12
    kept = json.loads((tmp_path / "c.json").read_text())
    assert kept["settings"]["denoisers"]["local"]["machine"] == "LS"
    for number, figure in enumerate((found.plot(), found.plot_images(3))):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_scales_are_replaced_at_some_times_only():
    scales = [3, 3, 5, 5, 7, 7, 9, 9, 11, 11]
    assert replace_scales(scales, 1, high=0.3) == [1, 1, 1, 5, 7, 7, 9, 9, 11, 11]
    assert replace_scales(scales, 1, low=0.8) == [3, 3, 5, 5, 7, 7, 9, 9, 1, 1]
    assert replace_scales(scales, 1, low=0.5, high=0.5) == scales


def test_a_counter_and_all_denoisers_are_tried_before_images_are_drawn(figures):
    labelled = pi.ScoreMachine(figures, np.arange(20) % 2, machine="LS", locality=LOCAL)
    some, done = {"labelled": labelled, **machines(figures)}, []

    def tried(counter, **settings):
        count_features(some, counter, n=1, steps=5, progress=lambda *step: done.append(step), **settings)

    for reference in (None, figures):
        with pytest.raises(
            InputError, match=r"returned float32 of shape \(1,\) for images of shape \(1, 1, "
        ):
            tried(lambda images: images.mean((1, 2, 3)), expected=4, reference=reference)
    with pytest.raises(InputError, match=r"label: .*no label"):
        tried(ink, expected=4, label=1)
    assert done == []


def test_bad_input_is_refused(figures):
    some = machines(figures)
    with pytest.raises(InputError, match="denoisers: there are none"):
        count_features({}, ink, reference=figures)
    with pytest.raises(InputError, match="'training images' is the name of the reference"):
        count_features({REFERENCE: some["local"]}, ink, reference=figures)
    with pytest.raises(InputError, match="expected: there is none; give it, or reference images"):
        count_features(some, ink)
    with pytest.raises(InputError, match="counter: returned float"):
        count_features(some, lambda images: images.mean((1, 2, 3)), reference=figures)
    smaller = pi.ScoreMachine(figures[:, :16, :16], machine="LS", locality=[3])
    with pytest.raises(InputError, match="denoisers: images have different shapes"):
        count_features({**some, "small": smaller}, ink, reference=figures)
