"""The heaviest patches of pixels: the weights of a float64 brute force, for every machine."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

from patchindex.exact import ScoreRequest, heaviest, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

SIZE = (9, 8)
PIXELS = [[0, 13, 71], [40]]  # a corner, the inside, the opposite corner


@pytest.fixture(scope="module")
def request_of(real_images):
    images, labels = real_images(30, SIZE, channels=3, classes=(2, 5))
    training = TrainingImages(images, labels)

    def make(name, t=0.5, k=5, pixels=PIXELS, **settings):
        x = torch.from_numpy(brute.noisy(real_images(2, SIZE, channels=3, skip=500)[0], t))
        geometry = Geometry.of(k=k, size=SIZE, **brute.settings_of(name))
        lists = None if pixels is None else [torch.tensor(numbers) for numbers in pixels]
        return ScoreRequest(training, geometry, x, brute.beta_of(t), pixels=lists, **settings)

    return make


def patches_of(found, row):
    """Return the weights of a row by image and place."""
    keys = zip(found.image[row].tolist(), found.place[row].tolist(), strict=True)
    return dict(zip(keys, found.weight[row].tolist(), strict=True))


@pytest.mark.parametrize("label", [None, 5])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_weights_agree_with_a_float64_brute_force(request_of, name, t, label):
    request = request_of(name, t, label=label)
    found = heaviest(request, 10)
    lo, hi = request.image_range
    rows = [(i, p) for i, numbers in enumerate(PIXELS) for p in numbers]
    for row, (i, p) in enumerate(rows):
        truth = brute.weights(
            request.training.read(lo, hi), request.x[i].numpy(), request.beta, name, divmod(p, SIZE[1]), k=5
        )
        truth = {(image + lo, y * SIZE[1] + x): w for (image, y, x), w in truth.items()}
        mine = patches_of(found, row)
        for patch, weight in mine.items():
            assert weight == pytest.approx(truth[patch], abs=1e-6)
        assert list(mine.values()) == sorted(mine.values(), reverse=True)
        assert sum(sorted(truth.values())[-10:]) == pytest.approx(sum(mine.values()), abs=1e-6)
        assert sum(mine.values()) + float(found.rest[row]) == pytest.approx(1, abs=1e-12)
        every = np.array(list(truth.values()))
        assert float(found.ess[row]) == pytest.approx(1 / (every**2).sum(), rel=1e-5)
        some = every[every > 0]
        assert float(found.entropy[row]) == pytest.approx(-(some * np.log(some)).sum(), abs=1e-5)


@pytest.mark.parametrize("name", brute.MACHINES)
def test_all_patches_together_give_the_posterior_mean(request_of, name):
    request = request_of(name, 0.4)
    members = int(scan(request).count.max())
    found = heaviest(request, members)
    assert float(found.rest.abs().max()) < 1e-12
    pixels = torch.from_numpy(request.training.read(0, len(request.training))).flatten(1, 2)
    centres = pixels[found.image.clamp_min(0), found.place.clamp_min(0)].double() / 127.5 - 1
    mean = (found.weight.unsqueeze(-1) * centres).sum(1)
    torch.testing.assert_close(mean, scan(request).mean(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", brute.MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_memory_gives_the_same_patches(request_of, name, dtype):
    large, small = (heaviest(request_of(name, 0.2, dtype=dtype, memory=m), 5) for m in (256 << 20, 1))
    assert torch.equal(large.image, small.image)
    assert torch.equal(large.place, small.place)
    torch.testing.assert_close(large.weight, small.weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["IS", "LS", "ELS"])
def test_fewer_patches_than_asked_for_leave_empty_places(real_images, name):
    images, _ = real_images(1, SIZE)
    x = torch.from_numpy(brute.noisy(images, 0.3))
    geometry = Geometry.of(k=7, size=SIZE, **brute.settings_of(name))
    found = heaviest(ScoreRequest(TrainingImages(images), geometry, x, brute.beta_of(0.3)), 8)
    members = geometry.patches_per_image if name == "ELS" else 1
    assert found.image.shape == (72, 8)
    assert (found.image[:, :members] == 0).all()
    assert (found.image[:, members:] == -1).all()
    assert (found.place[:, members:] == -1).all()
    assert (found.weight[:, members:] == 0).all()
    torch.testing.assert_close(found.weight.sum(1), torch.ones(72, dtype=torch.float64))
    if name != "ELS":
        assert torch.equal(found.place[:, 0], torch.arange(72))


def test_among_equal_patches_the_first_is_named():
    images = np.zeros((5, 8, 8), np.uint8)
    geometry = Geometry.of("ELS", 3, (8, 8))
    found = heaviest(ScoreRequest(TrainingImages(images), geometry, torch.zeros(1, 1, 8, 8), 0.01), 3)
    assert (found.image == 0).all()
    assert (found.place == torch.tensor([9, 10, 11])).all()
    torch.testing.assert_close(found.ess, torch.full((64,), 5.0 * 36, dtype=torch.float64))
    torch.testing.assert_close(found.weight, torch.full((64, 3), 1 / 180, dtype=torch.float64))


def test_images_are_numbered_as_the_training_images_are(real_images):
    images, labels = real_images(12, SIZE, classes=(2, 5))
    training = TrainingImages(images, labels)
    x = torch.from_numpy(images[:, None] / np.float32(127.5) - 1)
    request = ScoreRequest(training, Geometry.of("IS", None, SIZE), x.float(), 1e-4, pixels=[[0]] * 12)
    found = heaviest(request, 1)
    assert training.source_ids[found.image[:, 0].numpy()].tolist() == list(range(12))
