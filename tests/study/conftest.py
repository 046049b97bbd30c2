"""Small images, and denoisers made of them, for the tests of `theory`."""

from __future__ import annotations

import pytest
from stand_ins import SIZE

import patchindex as pi


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(60, SIZE, classes=(1, 4, 9))


@pytest.fixture(scope="module")
def held_out(real_images):
    """Sixty training images, and thirty that are not."""
    images, labels = real_images(90, SIZE, classes=(1, 4, 9))
    return pi.open_images(images, labels=labels)


@pytest.fixture(scope="module")
def denoisers(images):
    return {name: pi.denoiser(name, *images, locality=3) for name in ("bbELS", "LS", "IS")}
