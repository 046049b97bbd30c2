"""The exact engine: what the theory says of each machine, and independence of how the work is cut."""

from __future__ import annotations

from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

# Two float32 scans of the same patches: logits up to about 1e3 at t >= 0.3, rounded by 6e-8 relative each.
FLOAT32 = 1e-4
# Results that are float64 until they are rounded to float32.
FLOAT64 = 1e-6


def machine_of(images, name, labels=None, dtype=torch.float64, **settings):
    return pi.ScoreMachine(
        images, labels, estimator="exact", dtype=dtype, **brute.settings_of(name), **settings
    )


@pytest.fixture(scope="module")
def some(real_images):
    """Twenty images of 12 x 12 of three classes, their labels, and two other images with noise."""
    images, labels = real_images(20, 12, classes=(2, 5, 8))
    others, _ = real_images(2, 12, skip=500)
    return images, labels, torch.from_numpy(brute.noisy(others, 0.4))


def assert_close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


SIZES = [((9, 12), 5), ((12, 8), 5), ((6, 6), 7), ((6, 6), 13), ((6, 6), 19)]
CASES = [(name, *case) for name in brute.MACHINES for case in SIZES[: 2 if name == "ELS" else None]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "size", "k"), CASES)
def test_images_of_any_size_agree_with_brute_force(real_images, name, size, k, channels):
    """Images that are not square, and windows that are larger than the image (not for ELS)."""
    images = real_images(6, size, channels=channels)[0]
    x = brute.noisy(images[:1], 0.4)
    e = machine_of(images, name).posterior_mean(torch.from_numpy(x), 0.4, k=k)
    truth = brute.posterior_mean(images, x[0], brute.beta_of(0.4), name, k)
    np.testing.assert_allclose(e.mean[0], truth.mean, rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(e.ess[0], truth.ess, rtol=1e-5)
    assert e.patches_evaluated == truth.count.sum()


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_weights_counts_and_ess_agree_with_brute_force(some, name, t):
    """The sums that the mean is made of: weight, count and effective sample size."""
    images, _, _ = some
    x = torch.from_numpy(brute.noisy(images[:1], t))
    geometry = Geometry.of(k=5, size=(12, 12), **brute.settings_of(name))
    beta = brute.beta_of(t)
    state = scan(ScoreRequest(TrainingImages(images), geometry, x, beta, dtype=torch.float64))
    truth = brute.posterior_mean(images, x[0].numpy(), beta, name, 5)
    # Logits are up to 1e5 at t = 0.05 and differ from the definition by rounding in float64.
    np.testing.assert_allclose(state.log_weight()[0], truth.log_weight, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(state.ess()[0], truth.ess, rtol=1e-7)
    np.testing.assert_array_equal(state.count[0], truth.count)


@pytest.mark.parametrize("name", ["ELS", "ELS-wrapped"])
def test_els_commutes_with_circular_shifts(some, name):
    images, _, x = some
    m = machine_of(images, name)
    plain = m.posterior_mean(x, 0.4, k=5)
    for shift in ((3, 0), (0, -5), (7, 2)):
        moved = m.posterior_mean(x.roll(shift, (2, 3)), 0.4, k=5)
        assert_close(moved.mean, plain.mean.roll(shift, (2, 3)), FLOAT64)
        assert_close(moved.ess, plain.ess.roll(shift, (1, 2)), 1e-3)


@pytest.mark.parametrize("name", ["IS", "LS", "bbELS"])
def test_the_other_machines_do_not_commute_with_shifts(some, name):
    images, _, x = some
    m = machine_of(images, name)
    moved = m.posterior_mean(x.roll(3, 2), 0.4, k=5).mean
    assert (moved - m.posterior_mean(x, 0.4, k=5).mean.roll(3, 2)).abs().max() > 0.01


@pytest.mark.parametrize("k", [23, 25])
def test_ls_with_a_window_of_the_whole_image_equals_is(some, k):
    """Beyond the border both sides are zero, so every pixel sees the distance of whole images."""
    images, _, x = some
    ls, ideal = machine_of(images, "LS"), machine_of(images, "IS")
    for t in (0.3, 0.8):
        assert_close(ls.posterior_mean(x, t, k=k).mean, ideal.posterior_mean(x, t).mean, FLOAT64)


def test_ls_with_a_smaller_window_differs_from_is(some):
    images, _, x = some
    a = machine_of(images, "LS").posterior_mean(x, 0.8, k=11).mean
    assert (a - machine_of(images, "IS").posterior_mean(x, 0.8).mean).abs().max() > 0.01


@pytest.mark.parametrize("k", [13, 25])
def test_bbels_equals_ls_when_windows_see_every_border(some, k):
    """No two positions are then as far from the borders: every position is its own class."""
    images, _, x = some
    a = machine_of(images, "bbELS").posterior_mean(x, 0.4, k=k)
    b = machine_of(images, "LS").posterior_mean(x, 0.4, k=k)
    assert_close(a.mean, b.mean, FLOAT64)
    assert a.patches_evaluated == b.patches_evaluated == 2 * 144 * 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["IS", "LS"])
def test_one_training_image_gives_that_image_back(some, name, dtype):
    images, _, x = some
    e = machine_of(images[:1], name, dtype=dtype).posterior_mean(x, torch.tensor([0.05, 0.9]), k=5)
    expected = torch.from_numpy(images[:1].transpose(0, 3, 1, 2) / 127.5 - 1).float().expand(2, -1, -1, -1)
    assert_close(e.mean, expected, 1e-6)  # one rounding to float32
    assert torch.equal(e.ess, torch.ones(2, 12, 12))


@pytest.mark.parametrize("name", brute.MACHINES)
def test_a_label_restricts_to_its_images(some, name):
    images, labels, x = some
    whole = machine_of(images, name, labels)
    for label in np.unique(labels):
        mine = labels == label
        assert 0 < mine.sum() < len(labels)
        subset = machine_of(images[mine], name).posterior_mean(x, 0.4, k=5)
        by_call = whole.posterior_mean(x, 0.4, k=5, label=int(label))
        by_machine = machine_of(images, name, labels, label=int(label)).posterior_mean(x, 0.4, k=5)
        for found in (by_call, by_machine):
            assert_close(found.mean, subset.mean, FLOAT64)
            assert_close(found.ess, subset.ess, 1e-3)
            assert found.patches_evaluated == subset.patches_evaluated


@pytest.mark.parametrize("name", brute.MACHINES)
def test_the_order_of_the_images_does_not_matter(some, name):
    images, labels, x = some
    a = machine_of(images, name).posterior_mean(x, 0.4, k=5)
    b = machine_of(images[::-1].copy(), name, labels[::-1].copy()).posterior_mean(x, 0.4, k=5)
    assert_close(a.mean, b.mean, FLOAT64)


@pytest.mark.parametrize("name", ["IS", "ELS", "bbELS"])
def test_tiles_of_any_size_agree(some, name):
    images, _, x = some
    shares = []
    request = ScoreRequest(
        TrainingImages(images),
        Geometry.of(name, 5, (12, 12)),
        x,
        brute.beta_of(0.4),
        dtype=torch.float64,
        progress=lambda _, done, total: shares.append(done / total),
    )
    # One image a tile, a few, all.
    states = [scan(replace(request, memory=memory)) for memory in (1, 200_000, 256 << 20)]
    assert shares.count(1.0) == 3
    # Twenty tiles for each query by itself, then a few or one for both, then one.
    assert 42 <= len(shares) < 60
    for state in states[:2]:
        torch.testing.assert_close(state.log_weight(), states[2].log_weight(), rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(state.mean(), states[2].mean(), rtol=0, atol=1e-9)
        assert torch.equal(state.count, states[2].count)


@pytest.mark.parametrize("name", brute.MACHINES)
def test_batches_of_any_size_agree(some, real_images, name):
    images, _, _ = some
    m = machine_of(images[:8], name, dtype=torch.float32)
    x = torch.from_numpy(brute.noisy(real_images(9, 12, skip=700)[0], 0.4))  # more than a tile of queries
    together = m.posterior_mean(x, 0.4, k=3)
    alone = [m.posterior_mean(one[None], 0.4, k=3) for one in x]
    assert_close(together.mean, torch.cat([e.mean for e in alone]), FLOAT32)
    assert together.patches_evaluated == sum(e.patches_evaluated for e in alone)


def test_threads_agree(some):
    images, _, x = some
    before = torch.get_num_threads()
    one, two = (machine_of(images, "ELS", dtype=torch.float32, threads=n) for n in (1, 2))
    assert torch.equal(one.posterior_mean(x, 0.4, k=5).mean, two.posterior_mean(x, 0.4, k=5).mean)
    assert torch.get_num_threads() == before


def test_an_exact_estimate_has_no_error_and_all_mass(some):
    images, _, x = some
    e = machine_of(images, "ELS", dtype=torch.float32).posterior_mean(x, 0.6, k=3)
    assert (e.captured_mass == 1).all()
    assert (e.stderr == 0).all()
    assert e.codes_scanned == 0
    assert e.patches_evaluated == 2 * 144 * 20 * 100
    assert ((e.ess >= 1) & (e.ess <= 20 * 100)).all()


def test_ess_grows_with_the_noise_up_to_all_patches(some):
    images, _, _ = some
    m = machine_of(images, "ELS", noise=lambda t: t)
    x = torch.from_numpy(brute.noisy(images[:1], 0.5))
    ess = [float(m.posterior_mean(x, t, k=3).ess.mean()) for t in (0.01, 0.3, 0.9, 1 - 1e-9)]
    assert ess == sorted(ess)
    assert ess[-1] == pytest.approx(20 * 100, rel=1e-2)  # a = 3e-5: all patches weigh the same


def test_progress_grows_to_one(some):
    images, _, x = some
    shares = []
    m = machine_of(images, "ELS", memory=60_000)
    m.posterior_mean(
        x, torch.tensor([0.4, 0.6]), k=5, progress=lambda _, done, total: shares.append(done / total)
    )
    assert len(shares) > 4
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1


def test_a_scan_does_not_change_its_inputs(some):
    images, _, x = some
    before, query = images.copy(), x.clone()
    machine_of(images, "ELS", dtype=torch.float32).posterior_mean(x, 0.4, k=5)
    np.testing.assert_array_equal(images, before)
    assert torch.equal(x, query)
