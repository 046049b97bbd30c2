"""PSPC: the mean over windows of the posterior means of whole windows, as brute force finds it."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.denoisers.pspc import PSPC
from patchindex.errors import InputError
from patchindex.exact.whole_windows import WindowRequest, scan

# float32 sums of up to 200 squared differences: logits of about 100 have errors of about 1e-5.
TOLERANCE = 1e-4


def truth(images, x, beta, k, windows):
    """Return posterior means (B, C, H, W), ESS (B, H, W) and the number of windows, in float64."""
    v, a = images.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1, (1 - beta) ** 0.5
    batch, _, height, width = x.shape
    if windows == "padded":
        d = k // 2
        places = [
            (slice(max(0, y - d), y + d + 1), slice(max(0, z - d), z + d + 1))
            for y in range(height)
            for z in range(width)
        ]
    else:
        up, right = min(k, height), min(k, width)
        places = [
            (slice(y, y + up), slice(z, z + right))
            for y in range(height - up + 1)
            for z in range(width - right + 1)
        ]
    mean, ess, count = np.zeros(x.shape), np.zeros((batch, height, width)), np.zeros((height, width))
    for rows, columns in places:
        patches = v[:, :, rows, columns]
        for b in range(batch):
            window = x[b, :, rows, columns].double().numpy()
            logits = -((window - a * patches) ** 2).sum((1, 2, 3)) / (2 * beta)
            w = np.exp(logits - logits.max())
            mean[b, :, rows, columns] += np.tensordot(w / w.sum(), patches, 1)
            ess[b, rows, columns] += w.sum() ** 2 / (w**2).sum()
        count[rows, columns] += 1
    return mean / count, ess / count, len(places)


@pytest.fixture(scope="module", params=[(8, 3), ((12, 11), 1)], ids=["colour", "grey"])
def case(request, real_images):
    size, channels = request.param
    images, labels = real_images(150, size, channels=channels, classes=(2, 5, 8))
    return images, labels, real_images(2, size, channels=channels, skip=900)[0]


@pytest.mark.parametrize("windows", ["inside", "padded"])
@pytest.mark.parametrize("k", [1, 3, 7, 13])
@pytest.mark.parametrize("t", [0.05, 0.8])
def test_the_posterior_mean_agrees_with_brute_force(case, t, k, windows):
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, t))
    found = pi.denoiser("pspc", images, locality=k, windows=windows).posterior_mean(x, t)
    mean, ess, count = truth(images, x, brute.beta_of(t), k, windows)
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.ess.numpy(), ess, rtol=1e-3)
    assert (found.captured_mass == 1).all()
    assert (found.stderr == 0).all()
    assert found.patches_evaluated == len(x) * len(images) * count


def test_windows_of_one_pixel_are_ls_and_windows_of_the_image_are_is(case):
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    for k, machine in ((1, "LS"), (13, "IS")):
        found = PSPC(images, locality=k).posterior_mean(x, 0.5)
        expected = pi.ScoreMachine(images, machine=machine, locality=k if machine == "LS" else None)
        torch.testing.assert_close(found.mean, expected.posterior_mean(x, 0.5).mean, rtol=0, atol=TOLERANCE)


def test_the_schedule_gives_the_side_by_noise(case):
    images, _, clean = case
    d = PSPC(images, locality=[3, 3, 5, 7])
    assert [d.scale_at(t) for t in (0.2, 0.5, 0.9)] == [3, 5, 7]
    assert d.settings["locality"] == d.locality.as_dict()
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    expected = PSPC(images, locality=5).posterior_mean(x, 0.5)
    torch.testing.assert_close(d.posterior_mean(x, 0.5).mean, expected.mean, rtol=0, atol=1e-5)


def test_a_label_is_a_training_set_of_its_own(case):
    images, labels, clean = case
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    d = PSPC(images, labels, locality=5, label=5)
    for label in (5, 8):
        alone = PSPC(images[labels == label], locality=5).posterior_mean(x, 0.5)
        found = d.posterior_mean(x, 0.5, label=None if label == 5 else label)
        torch.testing.assert_close(found.mean, alone.mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.8])
def test_memory_threads_and_batches_do_not_change_the_result(case, t):
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, t))
    expected = PSPC(images, locality=5).posterior_mean(x, t)
    for options in ({"memory": 1}, {"memory": "1M"}, {"threads": 1}):
        found = PSPC(images, locality=5, **options).posterior_mean(x, t)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.ess, expected.ess, rtol=1e-4, atol=0)
    one = PSPC(images, locality=5).posterior_mean(x[1:], t).mean
    torch.testing.assert_close(one, expected.mean[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.9])
def test_the_largest_x_agrees_with_float64(case, t):
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, t))
    x *= 99.9 / x.abs().max()
    beta = brute.beta_of(t)
    d = PSPC(images, locality=5)
    y, sigma2 = x.double() / (1 - beta) ** 0.5, beta / (1 - beta)
    exact = scan(WindowRequest(d.training, None, y, sigma2, 5, dtype=torch.float64)).mean
    mean, _, _ = truth(images, x, beta, 5, "inside")
    np.testing.assert_allclose(exact.numpy(), mean, rtol=0, atol=1e-9)
    # Logits of 1e6 at t = 0.05 are rounded by 0.1, and one image has nearly all of the weight.
    np.testing.assert_allclose(d.posterior_mean(x, t).mean.numpy(), mean, rtol=0, atol=1e-3)


def test_the_least_noise_gives_the_image_itself(case):
    images, _, _ = case
    x = torch.from_numpy(images[:2].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    found = PSPC(images, locality=3).posterior_mean(x, 1e-9)
    torch.testing.assert_close(found.mean, x, rtol=0, atol=1e-6)


def test_progress_covers_both_passes(case):
    images, _, clean = case
    shares = []
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    PSPC(images, locality=3, memory=1).posterior_mean(
        x, 0.5, progress=lambda _, done, total: shares.append(done / total)
    )
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1


def test_bad_options_are_refused(case):
    with pytest.raises(InputError, match="locality: there is none"):
        PSPC(case[0])
    with pytest.raises(InputError, match="unknown windows 'valid'; use inside or padded"):
        PSPC(case[0], locality=3, windows="valid")
    with pytest.raises(InputError, match="locality"):
        PSPC(case[0], locality=4)
