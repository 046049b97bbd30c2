"""Each engine scans parts of the training images: a part has the state of a scan of the part alone."""

from __future__ import annotations

from itertools import pairwise

import brute
import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.exact import ScoreRequest, scan, scan_parts
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

SIZE = (12, 10)


@pytest.fixture(scope="module")
def case(real_images):
    images = np.concatenate(
        [real_images(20, SIZE, channels=3, classes=(c,))[0] for c in (2, 5)]  # in label order
    )
    x = torch.from_numpy(brute.noisy(real_images(2, SIZE, channels=3, skip=500)[0], 0.5))
    labels = np.repeat([2, 5], 20)

    def make(name, some=slice(None), **settings):
        geometry = Geometry.of(k=5, size=SIZE, **brute.settings_of(name))
        training = TrainingImages(images[some], labels[some])
        return ScoreRequest(training, geometry, x, brute.beta_of(0.5), **settings)

    return make


def assert_same(part, whole, dtype):
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9  # logits of up to 1e3, as `test_scan` says
    torch.testing.assert_close(part.mean(), whole.mean(), rtol=0, atol=tolerance)
    torch.testing.assert_close(part.log_weight(), whole.log_weight(), rtol=0, atol=tolerance)
    torch.testing.assert_close(part.ess(), whole.ess(), rtol=tolerance, atol=0)
    assert torch.equal(part.count, whole.count)


@pytest.mark.parametrize(
    "bounds", [[0, 40], [0, 8, 16, 24, 32, 40], [3, 4, 5, 17, 39], [0, 2, 4, 6, 9, 12, 15]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_a_part_has_the_state_of_its_images_alone(case, name, dtype, bounds):
    states = scan_parts(case(name, dtype=dtype), bounds)
    assert states.weight.shape == (len(bounds) - 1, 2, *SIZE)
    for part, (lo, hi) in zip(range(len(bounds) - 1), pairwise(bounds), strict=True):
        assert_same(states[part], scan(case(name, slice(lo, hi), dtype=dtype)), dtype)


@pytest.mark.parametrize("memory", [300_000, 256 << 20])
@pytest.mark.parametrize("share", [0.05, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["IS", "LS", "ELS", "bbELS"])
def test_some_pixels_of_the_parts_of_a_label(case, name, dtype, share, memory):
    mask = torch.from_numpy(np.random.default_rng(1).random((2, *SIZE)) < share)
    request = case(name, dtype=dtype, label=5, pixels=mask, memory=memory)
    states = scan_parts(request, [0, 6, 12, 18, 20])
    assert states.weight.shape == (4, int(mask.sum()))
    assert_same(states.reduce(0), scan(case(name, dtype=dtype, label=5))[mask], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_progress_grows_to_one_over_all_parts(case, dtype):
    shares = []
    request = case("ELS", dtype=dtype, progress=lambda _, done, total: shares.append(done / total))
    scan_parts(request, [4, 5, 20, 33])
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("bounds", [[], [0], [0, 0], [5, 3], [0, 41], [-1, 3]])
def test_bounds_that_do_not_grow_or_leave_the_images_are_refused(case, bounds):
    with pytest.raises(InputError, match="must ascend within 0 to 40"):
        scan_parts(case("ELS"), bounds)
    with pytest.raises(InputError, match="within 0 to 20"):
        scan_parts(case("ELS", label=5), [0, 21])
