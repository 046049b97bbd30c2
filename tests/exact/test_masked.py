"""The exact scan under masks: lists on the CPU and matrix products in float64 agree."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

from patchindex.exact.masked import MaskedRequest, list_masks, scan
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import threads

SHAPE = (3, 7, 9)
SIZE = 3 * 7 * 9


@pytest.fixture(scope="module")
def training(real_images):
    return TrainingImages(*real_images(150, SHAPE[1:], channels=3, classes=(2, 5)))


@pytest.fixture(scope="module")
def clean(real_images):
    return real_images(2, SHAPE[1:], channels=3, skip=900)[0]


def neighbourhoods(reach):
    """Return the masks (D, D) of all channels of the pixels within `reach`, some of which are missing."""
    y, x, _ = np.unravel_index(np.arange(SIZE), (*SHAPE[1:], SHAPE[0]))
    near = np.maximum(np.abs(y[:, None] - y), np.abs(x[:, None] - x)) <= reach
    return torch.from_numpy(near & (np.random.default_rng(0).random((SIZE, SIZE)) < 0.95))


def random_masks(share, size=SIZE):
    return torch.from_numpy(np.random.default_rng(0).random((size, size)) < share)


MASKS = {
    "small": neighbourhoods(1),
    "large": neighbourhoods(4),
    "random": random_masks(0.3),
    "empty": torch.zeros((SIZE, SIZE), dtype=torch.bool),
    "full": torch.ones((SIZE, SIZE), dtype=torch.bool),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("t", [0.01, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("label", [None, 5])
def test_lists_agree_with_products_in_float64(training, clean, name, t, label):
    beta = brute.beta_of(t)
    y, sigma2 = torch.from_numpy(brute.noisy(clean, t)).double() / (1 - beta) ** 0.5, beta / (1 - beta)
    lists = list_masks(MASKS[name], SHAPE, sigma2)
    exact = scan(MaskedRequest(training, label, y, sigma2, MASKS[name], dtype=torch.float64))
    found = scan(MaskedRequest(training, label, y, sigma2, lists))
    # At t = 0.01 the logits that matter are up to 1e3, with errors of 1e-4.
    torch.testing.assert_close(found.mean(), exact.mean(), rtol=0, atol=1e-3 if t == 0.01 else 1e-4)
    torch.testing.assert_close(found.log_weight(), exact.log_weight(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.ess(), exact.ess(), rtol=2e-3, atol=0)
    assert torch.equal(found.count, exact.count)


def test_masks_follow_from_neighbours_where_that_is_shorter_and_the_noise_is_not_small():
    assert (list_masks(MASKS["large"], SHAPE, 1.0).back > 0).mean() > 0.9
    assert len(list_masks(MASKS["large"], SHAPE, 1.0).indices) < 0.5 * len(
        list_masks(MASKS["large"], SHAPE, 1e-4).indices
    )
    for masks in (list_masks(MASKS["large"], SHAPE, 1e-4), list_masks(MASKS["random"], SHAPE, 1.0)):
        assert (masks.back == 0).all()


def test_equal_scans_on_two_threads_give_equal_bytes(real_images):
    """The threads have some ten tasks each, which end in another order each time."""
    training = TrainingImages(real_images(3000, 14)[0])
    size = 14 * 14
    y = torch.from_numpy(brute.noisy(real_images(4, 14, skip=4000)[0], 0.5))
    lists = list_masks(random_masks(0.1, size), (1, 14, 14), 1.0)
    with threads(2):
        states = [scan(MaskedRequest(training, None, y, 1.0, lists)) for _ in range(20)]
    for name in ("max_logit", "weight", "weight_sq", "centre"):
        assert len({getattr(state, name).numpy().tobytes() for state in states}) == 1


def test_memory_does_not_change_the_sums(training, clean):
    y = torch.from_numpy(brute.noisy(clean, 0.5))
    lists = list_masks(MASKS["large"], SHAPE, 1.0)
    for masks in (lists, MASKS["large"]):
        one, two = (scan(MaskedRequest(training, None, y, 1.0, masks, memory=m)) for m in (1, 1 << 28))
        # float32 sums of another order, of logits up to 300.
        torch.testing.assert_close(one.mean(), two.mean(), rtol=0, atol=2e-5)


def test_an_error_in_a_callback_ends_the_scan(training, clean):
    y = torch.from_numpy(brute.noisy(clean, 0.5))

    def fail(*_):
        raise RuntimeError("stop here")

    lists = list_masks(MASKS["small"], SHAPE, 1.0)
    with pytest.raises(RuntimeError, match="stop here"):
        scan(MaskedRequest(training, None, y, 1.0, lists, progress=fail))
