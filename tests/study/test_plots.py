"""Figures of studies in notebooks."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import patchindex as pi


@pytest.fixture(scope="module")
def figure(real_images):
    images, _ = real_images(30, 12)
    return pi.study.memorisation(images, (3, 9), (0.05, 0.9), n=2, pixels=8).plot()


def test_a_figure_is_a_picture_in_a_notebook(figure):
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    assert picture.format == "PNG"
    assert picture.size == tuple(int(each) for each in figure.get_size_inches() * figure.dpi)
    assert np.asarray(picture).std() > 0


def test_a_figure_says_what_it_is(figure):
    assert repr(figure).startswith("<Figure size ")


def test_figures_leave_pyplot_alone():
    code = "import sys; from patchindex.figures import figure_class; figure_class()(); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "matplotlib.figure" in found.split()
    assert "matplotlib.pyplot" not in found.split()
