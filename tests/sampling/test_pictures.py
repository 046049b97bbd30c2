"""Pictures of samples, and what a result prints."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError
from patchindex.sampling.pictures import filmstrip, image_grid, pictures_of


@pytest.fixture(scope="module")
def drawn(real_images):
    machine = pi.ScoreMachine(real_images(12, 10)[0], machine="LS", locality=5)
    return pi.sample(machine, n=3, steps=4, seed=2, trajectory=True)


def test_a_grid_shows_the_pixels_enlarged_by_a_whole_factor(drawn):
    grid = np.asarray(image_grid(drawn.images, columns=2, height=40, gap=4))
    assert grid.shape == (2 * 44 + 4, 2 * 44 + 4)
    expected = ((drawn.images[2, 0] + 1) * 127.5).clamp(0, 255).round().numpy()
    np.testing.assert_array_equal(grid[48:88:4, 4:44:4], expected)  # the second row
    assert (grid[48:88, 48:88] == 255).all()  # no fourth image
    colour = image_grid(torch.zeros(1, 3, 8, 8))
    assert colour.mode == "RGB"
    assert drawn.grid(columns=3).size == image_grid(drawn.images, columns=3).size


def test_names_are_written_to_the_left_of_rows(drawn):
    plain = np.asarray(image_grid(drawn.images, columns=1, height=40))
    named = np.asarray(image_grid(drawn.images, columns=1, height=40, row_names=["boot\x1b", "", "b" * 99]))
    assert named.shape[0] == plain.shape[0]
    margin = named.shape[1] - plain.shape[1]
    assert 100 < margin < 300  # the width of 24 letters
    np.testing.assert_array_equal(named[:, margin:], plain)
    written = (named[:, :margin] < 128).any(axis=1)
    assert written[4:44].any()
    assert not written[48:88].any()
    assert written[92:132].any()


def test_names_of_rows_stand_beside_small_images_with_heads():
    images = torch.ones(1, 1, 8, 8)
    names = {"row_names": ["a", "b"], "column_names": ["1"]}
    grid = np.asarray(image_grid(torch.cat([images, images]), 1, height=8, **names))
    plain = np.asarray(image_grid(torch.cat([images, images]), 1, height=8, column_names=["1"]))
    margin = grid[:, : -plain.shape[1]]
    tops = np.flatnonzero((margin < 200).any(axis=1))
    first = plain.shape[0] - 2 * 12  # from here on, rows of 8 pixels and 4 between them
    assert first - 2 <= tops[0]
    assert abs(tops.mean() - (first + 12 - 2)) < 3  # between the two rows


def test_a_mapping_is_a_row_per_name_and_rows_may_differ_in_length_and_colour(drawn):
    rows = {"LS": drawn, "red": torch.ones(2, 3, 10, 10)}
    grid = np.asarray(image_grid(rows, height=20, gap=2))
    assert grid.shape[2] == 3
    margin = grid.shape[1] - (3 * 22 + 2)
    assert margin > 10
    levels = ((drawn.images[2, 0] + 1) * 127.5).clamp(0, 255).round().numpy()
    np.testing.assert_array_equal(grid[2:22:2, margin + 46 : margin + 66 : 2, 1], levels)
    assert (grid[24:44, margin + 46 : margin + 66] == 255).all()  # the second row has two images
    few = image_grid(rows, 1, height=20, gap=2)
    assert few.width == margin + 24


def test_names_are_written_above_columns(drawn):
    plain = np.asarray(image_grid(drawn.images, columns=3, height=40))
    named = np.asarray(image_grid(drawn.images, 3, height=40, column_names=["k = 3", "", "k = 5"]))
    head = len(named) - len(plain)
    np.testing.assert_array_equal(named[head:], plain)
    written = (named[:head] < 128).any(axis=0)
    assert written[4:44].any()
    assert not written[48:88].any()
    assert written[92:132].any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(1, 8, 8),
            r"images: must be .* \(n, C, H, W\), C 1 or 3, got \(1, 8, 8\)",
        ),
        (torch.zeros(1, 2, 8, 8), "got \\(1, 2, 8, 8\\)"),
        (np.zeros((1, 1, 8, 8)), "got ndarray"),
        ({}, "have one size, got no images"),
        ({"a": torch.zeros(1, 1, 8, 8), "b": torch.zeros(1, 1, 8, 9)}, "have one size, got 8 x 8, 8 x 9"),
        ({"bags": torch.zeros(0, 1, 8, 8)}, "bags: must be a tensor of shape"),
    ],
)
def test_images_that_form_no_grid_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        image_grid(images)


def test_each_image_is_a_picture_of_its_own_pixels(drawn):
    first, *others = pictures_of(drawn.images)
    assert (first.mode, first.size, len(others)) == ("L", (10, 10), 2)
    assert pictures_of(torch.ones(1, 3, 8, 9))[0].getpixel((8, 7)) == (255, 255, 255)


def test_a_filmstrip_has_noisy_images_above_posterior_means(drawn):
    path = drawn.trajectory
    strip = np.asarray(filmstrip(path, drawn.images, height=20))
    rows = strip[16 + 4 :: 24, 4::24][: 2 * 3, : len(path) + 1]  # the first pixel of each image

    def levels(x):
        return ((torch.as_tensor(x) + 1) * 127.5).clamp(0, 255).round().numpy()

    np.testing.assert_array_equal(rows[0::2, :3], levels(path.x[:, :, 0, 0, 0]).T)
    np.testing.assert_array_equal(rows[1::2, :3], levels(path.mean[:, :, 0, 0, 0]).T)
    np.testing.assert_array_equal(rows[:, 3], levels(drawn.images[:, 0, 0, 0]).repeat(2))


def test_a_result_says_what_it_is_and_has_a_grid_in_a_notebook(drawn):
    text = "SampleResult(3 images of 1 x 10 x 10 by LS: ddim, steps=4, seed=2)"
    assert repr(drawn) == text
    shown = drawn._repr_html_()
    assert text in shown
    png = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", shown).group(1))
    with Image.open(BytesIO(png)) as picture:
        assert picture.size == drawn.grid().size


def test_denoisers_say_what_they_are(real_images):
    pixels, labels = real_images(12, 10, classes=(2, 5))
    machine = pi.ScoreMachine(pixels, labels, machine="bbELS", locality=[3, 3, 5], label=5)
    found = "ScoreMachine(1 x 10 x 10, noise=cosine, label=5, machine=bbELS, estimator=exact, scales=[3, 5])"
    assert repr(machine) == found
    shown = machine._repr_html_()
    assert shown.startswith("<table><caption>ScoreMachine</caption>")
    assert "<tr><td>images</td><td>1 x 10 x 10</td></tr><tr><td>noise</td><td>cosine</td></tr>" in shown
    assert "<tr><td>scales</td><td>[3, 5]</td></tr>" in shown
    assert repr(pi.denoiser("wiener", pixels, noise="flow")) == "Wiener(1 x 10 x 10, noise=flow)"
