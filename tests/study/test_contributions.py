"""Weights of training images against brute force in float64."""

import brute
import numpy as np
import pytest
import torch

from patchindex.exact import ScoreRequest
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.study.contributions import contributions, some_pixels, textured


def weights(training, x, beta, name, k, places):
    """Return the weight of each training image at some pixels of one image: (pixels, N)."""
    v = training.read(0, len(training)) / 127.5 - 1
    height, width = v.shape[1:3]
    query_padding = "circular" if name.startswith("ELS") else "zeros"
    train_padding = {"ELS": "valid", "ELS-wrapped": "circular"}.get(name, "zeros")
    found = []
    for place in places:
        y, c = place // width, place % width
        mine = brute.position_class(name, k, y, c, height, width)
        query = brute.window(x.transpose(1, 2, 0), y, c, k, query_padding)
        logits = [
            -((query - (1 - beta) ** 0.5 * brute.window(v, *at, k, train_padding)) ** 2).sum(1) / (2 * beta)
            for at in brute.train_positions(name, k, height, width)
            if brute.position_class(name, k, *at, height, width) == mine
        ]
        logits = np.stack(logits, 1)
        shares = np.exp(logits - logits.max())
        found.append(shares.sum(1) / shares.sum())
    return np.stack(found)


@pytest.mark.parametrize("name", ["LS", "ELS", "ELS-wrapped", "bbELS"])
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_weights_are_those_of_brute_force(real_images, name, t):
    images, labels = real_images(20, 12)
    training = TrainingImages(images[:16], labels[:16])
    x = brute.noisy(images[16:18], t)
    beta, k = brute.beta_of(t), 5
    chosen = [torch.tensor([0, 13, 66]), torch.tensor([70, 143])]
    settings = brute.settings_of(name)
    geometry = Geometry.of(settings["machine"], k, (12, 12), settings["train_windows"])
    found = contributions(ScoreRequest(training, geometry, torch.from_numpy(x), beta, pixels=chosen))
    for i, places in enumerate(chosen):
        expected = weights(training, x[i].astype(np.float64), beta, name, k, places.tolist())
        # Logits of up to a few hundred are float32: the weights are right to about 1e-4.
        assert np.abs(found.weight[i].numpy() - expected.mean(0)).max() < 5e-4
        mean = expected.mean(0)
        entropy = -(mean[mean > 0] * np.log(mean[mean > 0])).sum()
        assert float(found.images[i]) == pytest.approx(np.exp(entropy), rel=5e-3)
        each = [-(row[row > 0] * np.log(row[row > 0])).sum() for row in expected]
        assert float(found.images_per_pixel[i]) == pytest.approx(np.exp(np.mean(each)), rel=5e-3)


def test_an_image_without_pixels_has_no_number(real_images):
    images, _ = real_images(10, 12)
    x = torch.from_numpy(brute.noisy(images[:2], 0.3))
    geometry = Geometry.of("ELS", 3, (12, 12))
    pixels = [torch.tensor([5]), torch.tensor([], dtype=torch.int64)]
    found = contributions(
        ScoreRequest(TrainingImages(images), geometry, x, brute.beta_of(0.3), pixels=pixels)
    )
    assert float(found.weight[0].sum()) == pytest.approx(1, abs=1e-4)
    assert found.images[0] >= 1
    assert found.images[1].isnan()
    assert found.weight[1].sum() == 0


def test_flat_neighbourhoods_are_left_out():
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., 8:, :] = 1
    mask = textured(image)[0]
    assert mask[6:10].all()
    assert not mask[:6].any()
    assert not mask[10:].any()
    chosen = some_pixels(image.repeat(2, 1, 1, 1), 10)
    assert [len(numbers) for numbers in chosen] == [10, 10]
    assert all(mask.flatten()[numbers].all() for numbers in chosen)
    assert len(some_pixels(torch.zeros(1, 1, 8, 8), 10)[0]) == 0
