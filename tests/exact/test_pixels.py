"""Exact scores of some pixels: those of the full scan, by every engine, however they are asked for."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

from patchindex import exact
from patchindex.errors import InputError
from patchindex.exact import offsets as anywhere
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

SIZE = (14, 11)


@pytest.fixture(scope="module")
def scan(real_images):
    images, labels = real_images(30, SIZE, channels=3, classes=(2, 5))
    x = torch.from_numpy(brute.noisy(real_images(3, SIZE, channels=3, skip=500)[0], 0.5)).float()
    training, beta = TrainingImages(images, labels), brute.beta_of(0.5)

    def run(name, k=5, **settings):
        geometry = Geometry.of(k=k, size=SIZE, **brute.settings_of(name))
        return exact.scan(exact.ScoreRequest(training, geometry, x, beta, **settings))

    return run


def a_mask(share=0.1):
    mask = torch.from_numpy(np.random.default_rng(1).random((3, *SIZE)) < share)
    mask[1] = False  # an image of which nothing is asked
    return mask


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("label", [None, 5])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_both_ways_of_the_torch_engine_agree_with_the_full_scan(scan, monkeypatch, name, label, few):
    monkeypatch.setattr(anywhere, "_full_cost", lambda *args: 1e30 if few else 0.0)
    mask = a_mask()
    asked = scan(name, pixels=mask, label=label, dtype=torch.float64, memory=1 << 20)
    whole = scan(name, label=label, dtype=torch.float64)[mask]
    torch.testing.assert_close(asked.mean(), whole.mean(), rtol=0, atol=1e-10)
    torch.testing.assert_close(asked.log_weight(), whole.log_weight(), rtol=1e-10, atol=1e-9)
    assert torch.equal(asked.count, whole.count)


@pytest.mark.parametrize("memory", [1, 256 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["IS", "ELS"])
def test_lists_keep_their_order_and_repetitions(scan, name, dtype, memory):
    lists = [torch.tensor([153, 0, 7, 0]), torch.tensor([], dtype=torch.int32), [80, 2]]
    state = scan(name, pixels=lists, dtype=dtype, memory=memory)
    rows = torch.tensor([153, 0, 7, 0, 154 * 2 + 80, 154 * 2 + 2])
    whole = scan(name, dtype=dtype).mean().flatten(0, 2)[rows]
    torch.testing.assert_close(state.mean(), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_wanted_pixel_gives_an_empty_state(scan, dtype):
    shares = []
    mask = torch.zeros((3, *SIZE), dtype=torch.bool)
    state = scan("ELS", pixels=mask, dtype=dtype, progress=lambda _, done, total: shares.append(done / total))
    assert state.mean().shape == (0, 3)
    assert shares == [1.0]
    mask[0] = True  # the last groups have nothing to do
    scan(
        "ELS", pixels=mask, dtype=dtype, memory=1, progress=lambda _, done, total: shares.append(done / total)
    )
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.ones(3, 11, 14, dtype=torch.bool), "a mask must be of shape"),
        ([torch.tensor([0])], "1 lists for 3 images"),
        ([torch.tensor([0]), torch.tensor([154]), torch.tensor([0])], "must be 0 to 153, got 154 to 154"),
        ([torch.tensor([0]), torch.tensor([-1]), torch.tensor([0])], "got -1"),
        ([torch.tensor([0.5]), torch.tensor([1]), torch.tensor([0])], "list of integers"),
        (torch.ones(3, 2, 2, dtype=torch.int64), "list of integers"),
    ],
)
def test_bad_pixels_are_refused(scan, pixels, message):
    with pytest.raises(InputError, match=message):
        scan("ELS", pixels=pixels)
