import numpy as np
import pytest

from patchindex.networks import TrainSettings, train

SMALL = {"channels": 16, "layers": 1}


@pytest.fixture(scope="session")
def pictures(real_images):
    """Forty images of 8 x 8, and their labels 1, 4 and 9."""
    images, labels = real_images(40, 16, classes=(1, 4, 9))
    return np.ascontiguousarray(images[:, ::2, ::2]), labels


@pytest.fixture
def small():
    """Return settings of a run of a few steps; two batches of 16 and one of 8 per epoch."""

    def make(**settings):
        return TrainSettings(**{"options": SMALL, "batch_size": 16, "lr": 1e-3, "steps": 4, **settings})

    return make


@pytest.fixture(scope="session")
def run(pictures, tmp_path_factory):
    """A finished run with class labels, which tests do not change."""
    images, labels = pictures
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainSettings(options=SMALL, batch_size=16, steps=4, conditional=True)
    train(images, folder, settings, labels=labels, threads=1)
    return folder
