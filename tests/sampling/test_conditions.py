"""Conditions: a partly noised image to start from, and pixels whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.sampling import ImageStart, KnownPixels
from patchindex.schedules import cosine


@pytest.fixture(scope="module")
def pixels(real_images):
    return real_images(12, 10)[0]


@pytest.fixture(scope="module")
def machine(pixels):
    return pi.ScoreMachine(pixels, locality=[3, 3, 5, 7])


@pytest.fixture(scope="module")
def clean(pixels):
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 127.5 - 1).float()


def test_sampling_starts_at_the_noised_image(machine, clean):
    seen = []
    r = pi.sample(machine, n=2, steps=10, start=ImageStart(clean[:1], 0.45), callback=seen.append, seed=3)
    assert [step["t"] for step in seen] == [0.4, 0.3, 0.2, 0.1]
    beta = cosine(0.4)
    x = (1 - beta) ** 0.5 * clean[:1] + beta**0.5 * r.x_T
    expected = machine.posterior_mean(x, 0.4).mean
    torch.testing.assert_close(seen[0]["estimate"].mean, expected, rtol=0, atol=1e-5)
    assert r.settings["strength"] == 0.45


def test_little_noise_keeps_the_image_and_full_noise_forgets_it(machine, clean):
    def distances(strength):
        r = pi.sample(machine, n=3, steps=20, start=ImageStart(clean[:3], strength))
        return (r.images - clean[:3]).square().mean((1, 2, 3))

    near, middle, far = (distances(strength).mean() for strength in (0.1, 0.5, 1.0))
    assert near < middle < far
    assert near < far / 3


def test_known_pixels_have_their_values_and_the_others_are_drawn(machine, clean):
    mask = np.zeros((10, 10), bool)
    mask[:, :5] = True
    seen = []
    known = KnownPixels(clean[:1], mask[:, ::-1].copy()[:, ::-1])  # of any strides
    r = pi.sample(machine, n=2, steps=8, known=known, callback=seen.append, seed=1)
    assert torch.equal(r.images[:, :, :, :5], clean[:1, :, :, :5].expand(2, -1, -1, -1))
    assert (r.images[0, :, :, 5:] - r.images[1, :, :, 5:]).abs().max() > 0.05
    for step in seen:  # noised with the noise of the start
        beta = cosine(step["t_next"])
        expected = (1 - beta) ** 0.5 * clean[:1] + beta**0.5 * r.x_T
        torch.testing.assert_close(step["x"][..., :5], expected[..., :5], rtol=0, atol=1e-6)
    assert r.settings["known_pixels"] == 2 * 50


def test_known_pixels_change_their_neighbours(machine, clean):
    mask = np.zeros((10, 10), bool)
    mask[:, :8] = True
    drawn = [pi.sample(machine, n=1, steps=8, known=KnownPixels(clean[i : i + 1], mask)) for i in (0, 1)]
    assert (drawn[0].images[..., 8:] - drawn[1].images[..., 8:]).abs().max() > 0.05


def test_known_pixels_per_image_in_batches(machine, clean):
    mask = torch.zeros(3, 10, 10, dtype=torch.bool)
    for i in range(3):
        mask[i, i] = True
    known = KnownPixels(clean[:3], mask)
    whole = pi.sample(machine, n=3, steps=5, known=known)
    for i in range(3):
        assert torch.equal(whole.images[i, :, i], clean[i, :, i])
    split = pi.sample(machine, n=3, steps=5, known=known, batch_size=2)
    torch.testing.assert_close(split.images, whole.images, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda clean: ImageStart(clean[:1], 0), r"strength: must lie in \(0, 1\], got 0"),
        (lambda clean: ImageStart(clean[:1], "half"), "strength: must lie in"),
        (lambda clean: ImageStart(clean[:1], 0.05), "strength: no step starts at or below 0.05"),
        (lambda clean: ImageStart(clean[:2], 0.5), "start: there are 2 images for 3 samples"),
        (lambda clean: ImageStart(127 * clean[:1] / 2, 0.5), r"start: values must lie in \[-1, 1\]"),
        (lambda clean: ImageStart(clean[:1, :, :5], 0.5), "start: must be a tensor of shape"),
        (lambda clean: ImageStart("image", 0.5), "start: is no array of floats"),
    ],
)
def test_starts_that_make_no_sense_are_refused(machine, clean, start, words):
    with pytest.raises(InputError, match=words):
        pi.sample(machine, n=3, steps=10, start=start(clean))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 10), bool),
        np.zeros((10, 10)),
        torch.zeros(10, 10),
        torch.zeros(2, 10, 10, dtype=torch.bool),
        [[True], [True, False]],
    ],
)
def test_masks_that_do_not_fit_are_refused(machine, clean, mask):
    with pytest.raises(InputError, match=r"mask: (must be bool of shape \(10, 10\)|is no array of bools)"):
        pi.sample(machine, n=3, steps=10, known=KnownPixels(clean[:1], mask))
