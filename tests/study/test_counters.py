"""Counters of limbs, strokes and holes."""

import builtins

import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.study.counters import count_holes, count_limbs, count_strokes, draw_figures


def unit(images):
    return to_unit(as_tensor(images)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("limbs", [1, 2, 4, 6])
def test_limbs_of_drawn_figures_are_counted_right(limbs):
    counts = count_limbs(unit(draw_figures(200, limbs=limbs, seed=1)))
    assert (counts == limbs).mean() >= 0.98


def test_a_figure_is_one_stroke_without_holes():
    figures = unit(draw_figures(50))
    assert (count_strokes(figures) == 1).all()
    assert (count_holes(figures) == 0).all()


def test_a_limb_that_is_cut_off_or_joined_changes_the_count():
    figures = unit(draw_figures(1, seed=3))
    cut = figures.clone()
    cut[..., :, : int(torch.nonzero(figures[0, 0] > 0)[:, 1].min()) + 8] = -1  # the left limbs
    assert count_limbs(cut)[0] < count_limbs(figures)[0]
    assert count_limbs(torch.full_like(figures, -1))[0] == 0


def test_figures_depend_on_seed_and_number_only():
    assert np.array_equal(draw_figures(3, seed=5), draw_figures(9, seed=5)[:3])
    assert not np.array_equal(draw_figures(3, seed=5), draw_figures(3, seed=6))
    assert draw_figures(1, size=40).shape == (1, 40, 40, 1)


def test_strokes_and_holes_of_known_shapes():
    eight, two_bars = torch.full((2, 1, 16, 16), -1.0)
    for top in (1, 7):
        eight[:, top : top + 7, 4:11] = 1
        eight[:, top + 2 : top + 5, 6:9] = -1
    two_bars[:, 2:14, 3:5] = two_bars[:, 2:14, 9:11] = 1
    two_bars[:, 0, 15] = 1  # a speck
    images = torch.stack([eight, two_bars])
    assert count_holes(images).tolist() == [2, 0]
    assert count_strokes(images).tolist() == [1, 2]


def test_background_that_touches_the_border_at_a_corner_is_no_hole():
    image = torch.full((1, 1, 5, 5), 1.0)
    image[..., 0, 0] = image[..., 4, 2:4] = -1
    assert count_holes(image).tolist() == [0]


def test_colour_images_are_counted_by_their_mean():
    figures = unit(draw_figures(4))
    assert np.array_equal(count_limbs(figures.repeat(1, 3, 1, 1)), count_limbs(figures))


def test_impossible_figures_are_refused():
    with pytest.raises(InputError, match="size: must be at least 32, got 16"):
        draw_figures(1, size=16)
    with pytest.raises(InputError, match="n: must be at least 1, got 0"):
        draw_figures(0)
    with pytest.raises(InputError, match="limbs: must be from 1 to 6, got 9"):
        draw_figures(1, limbs=9)


def test_a_missing_scipy_is_one_line(monkeypatch):
    find = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"scipy is not installed; pip install 'patchindex\[studies\]'"):
        count_strokes(torch.zeros(1, 1, 8, 8))
