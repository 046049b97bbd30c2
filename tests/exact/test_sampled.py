"""A sampled scan: exact when it has grown to everything, unbiased and honest before, repeatable."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

from patchindex.exact import ScoreRequest, scan
from patchindex.exact.sampled import SampledScan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.kernels.known_patches import KnownPatches
from patchindex.runtime import threads
from patchindex.softmax import SoftmaxState

CASES = [("ELS", "valid"), ("ELS", "wrapped"), ("bbELS", "valid")]
SIZE = (12, 14)
NONE = KnownPatches(*(np.empty(0, kind) for kind in (np.int32, np.int32, np.int32, np.float32)))
EVERYTHING = 10**6


@pytest.fixture
def case(real_images):
    """Images, a noisy one, and its noise level."""

    def make(n, t=0.5, channels=1):
        images = real_images(n, SIZE, channels=channels)[0]
        x = brute.noisy(real_images(1, SIZE, channels=channels, skip=900)[0], t)
        beta = brute.beta_of(t)
        return images, torch.from_numpy(x)[0], (1 - beta) ** 0.5, beta

    return make


def sampled(images, geometry, x, a, beta, *, seed=0, known=NONE, top=None, pixels=None):
    if top is None:
        top = np.full(SIZE[0] * SIZE[1], -np.inf)
    mask = None if pixels is None else pixels[None]
    request = ScoreRequest(TrainingImages(images), geometry, x[None], beta, seed=seed, pixels=mask)
    return SampledScan(request, images, known, top)


def members_of(geometry, images, x, a, beta, rng, n):
    """n pairs of a pixel and a patch of its class, with their logits in float64, and the sums of those."""
    height, width = SIZE
    in_y, in_x = geometry.y.ranges, geometry.x.ranges
    found = {}
    while len(found) < n:
        py, px, ty, tx = (rng.integers(size) for size in (height, width, height, width))
        if in_y[py, 0] <= ty < in_y[py, 1] and in_x[px, 0] <= tx < in_x[px, 1]:
            image = rng.integers(len(images))
            found[py * width + px, (image * height + ty) * width + tx] = None
    pixel, patch = np.array(list(found)).T
    unit = images / 127.5 - 1
    query = x.numpy().transpose(1, 2, 0)
    query_padding = "circular" if geometry.y.circular else "zeros"
    train_padding = "circular" if geometry.y.train_padding == "wrapped" else "zeros"
    logits = []
    for p, j in zip(pixel, patch, strict=True):
        of_image, place = divmod(j, height * width)
        mine = brute.window(query, *divmod(p, width), geometry.k, query_padding)
        its = brute.window(unit[of_image], *divmod(place, width), geometry.k, train_padding)
        logits.append(-np.square(mine - a * its).sum() / (2 * beta))
    logits = np.array(logits)
    state = SoftmaxState.empty((height * width,), images.shape[3])
    centres = unit.reshape(-1, images.shape[3])[patch]
    for i in range(n):
        state.merge(
            SoftmaxState.of(torch.tensor([[logits[i]]]), torch.from_numpy(centres[i : i + 1])[None]),
            [int(pixel[i])],
        )
    image, place = divmod(patch, height * width)
    order = np.argsort(image)
    whole = (a[order].astype(np.int32) for a in (pixel, image, place))
    return KnownPatches(*whole, logits[order].astype(np.float32)), state


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize(("machine", "train_windows"), CASES)
def test_everything_scanned_is_exact(case, machine, train_windows, k, channels):
    images, x, a, beta = case(70, channels=channels)
    geometry = Geometry.of(machine, k, SIZE, train_windows)
    sample = sampled(images, geometry, x, a, beta)
    for strata in (3, 2, EVERYTHING):
        sample.grow(strata)
    state, exact = sample.state(), scan(ScoreRequest(TrainingImages(images), geometry, x[None], beta))[0]
    assert sample.scanned == sample.strata
    assert torch.equal(state.count, exact.count)
    # Both are float32 sums of the same numbers, in another order.
    torch.testing.assert_close(state.mean(), exact.mean(), rtol=0, atol=5e-6)
    torch.testing.assert_close(state.log_weight(), exact.log_weight(), rtol=0, atol=5e-6)
    torch.testing.assert_close(state.ess(), exact.ess(), rtol=1e-5, atol=0)
    assert (state.stderr() == 0).all()


@pytest.mark.parametrize(("machine", "train_windows"), CASES)
def test_known_patches_are_left_out(case, machine, train_windows):
    images, x, a, beta = case(70)
    geometry = Geometry.of(machine, 5, SIZE, train_windows)
    known, members = members_of(geometry, images, x, a, beta, np.random.default_rng(1), 500)
    exact = scan(ScoreRequest(TrainingImages(images), geometry, x[None], beta))[0]
    for pixels in (None, torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) < 0.2):
        top = members.max_logit.numpy()
        sample = sampled(images, geometry, x, a, beta, known=known, top=top, pixels=pixels)
        sample.grow(2)
        sample.grow(EVERYTHING)
        state = sample.state()
        state.merge(members.reshape(SIZE))
        asked = torch.ones(SIZE, dtype=torch.bool) if pixels is None else pixels
        # What is taken out was added with another rounding of its logit, up to 1e-5 of the member's weight.
        torch.testing.assert_close(state.mean()[asked], exact.mean()[asked], rtol=0, atol=2e-5)
        torch.testing.assert_close(state.log_weight()[asked], exact.log_weight()[asked], rtol=0, atol=2e-5)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("machine", "train_windows"), CASES)
def test_sums_are_unbiased_and_errors_honest(case, machine, train_windows, single):
    images, x, a, beta = case(960, t=0.6)
    geometry = Geometry.of(machine, 3, SIZE, train_windows)
    exact = scan(ScoreRequest(TrainingImages(images), geometry, x[None], beta))[0]
    pixels = torch.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 7 == 0 if single else None
    asked = slice(None) if pixels is None else pixels
    weights, errors, stderrs = [], [], []
    for seed in range(40):
        sample = sampled(images, geometry, x, a, beta, seed=seed, pixels=pixels)
        sample.grow(sample.strata // 3)
        state = sample.state()
        weights.append((state.log_weight() - exact.log_weight())[asked].exp())
        errors.append((state.mean() - exact.mean())[asked])
        stderrs.append(state.stderr()[asked])
    mean = torch.stack(weights).mean(1)  # pixels share their sample: a mean over them for each seed
    assert abs(float(mean.mean()) - 1) < 3.5 * float(mean.std()) / 40**0.5
    ratio = torch.stack(errors).square().mean().sqrt() / torch.stack(stderrs).square().mean().sqrt()
    # Pixels share their sample, so 40 seeds are 40 draws: the spread of 40 draws has an error of
    # 1 / sqrt(2 * 40) = 11 %, and the bounds are about two of these errors.
    assert 0.8 < float(ratio) < 1.25
    # The errors are no rounding.
    assert float(torch.stack(errors).square().mean().sqrt()) > 1e-3


def test_a_label_restricts_the_sample(case):
    images, x, _, beta = case(90)
    geometry = Geometry.of("ELS", 3, SIZE)
    training = TrainingImages(images, np.repeat([3, 4, 5], [20, 55, 15]))
    request = ScoreRequest(training, geometry, x[None], beta, label=4)
    sample = SampledScan(request, images, NONE, np.full(168, -np.inf))
    sample.grow(EVERYTHING)
    exact = scan(ScoreRequest(TrainingImages(images[20:75]), geometry, x[None], beta))[0]
    torch.testing.assert_close(sample.state().mean(), exact.mean(), rtol=0, atol=5e-6)


def test_restrict_stops_the_sample_of_other_pixels(case):
    """The others keep what they have; known members of theirs are not taken out of what is not added."""
    images, x, a, beta = case(200)
    geometry = Geometry.of("ELS", 5, SIZE)
    known, members = members_of(geometry, images, x, a, beta, np.random.default_rng(1), 900)
    exact = scan(ScoreRequest(TrainingImages(images), geometry, x[None], beta))[0]
    some, few = (torch.arange(168).reshape(SIZE) % n == 0 for n in (2, 6))
    top = members.max_logit.numpy()
    sample = sampled(images, geometry, x, a, beta, known=known, top=top, pixels=some)
    sample.grow(3)
    before = sample.state()
    sample.restrict(few)
    sample.grow(EVERYTHING)
    after, others = sample.state(), some & ~few
    assert torch.equal(before.mean()[others], after.mean()[others])
    assert torch.equal(before.mean_variance()[others], after.mean_variance()[others])
    assert torch.equal(before.count[others], after.count[others])
    after.merge(members.reshape(SIZE))
    torch.testing.assert_close(after.mean()[few], exact.mean()[few], rtol=0, atol=2e-5)


def test_pixels_of_few_patches_are_sampled_evenly(case):
    """A corner's patches are all in one class of offsets: of equal strata it has equally many."""
    images, x, a, beta = case(640)
    sample = sampled(images, Geometry.of("bbELS", 7, SIZE, "valid"), x, a, beta)
    sample.grow(10)  # rounded up to 12, three of each class
    assert int(sample.state().count[0, 0]) == 3 * 32


def test_equal_seeds_give_equal_sums_on_any_number_of_threads(case):
    images, x, a, beta = case(200, channels=3)
    geometry = Geometry.of("ELS", 5, SIZE)
    states = []
    for number, seed in ((1, 5), (2, 5), (1, 6)):
        sample = sampled(images, geometry, x, a, beta, seed=seed)
        with threads(number):
            sample.grow(7)
        states.append(sample.state())
    one, two, other = states
    torch.testing.assert_close(one.mean(), two.mean(), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.stderr(), two.stderr(), rtol=1e-4, atol=1e-7)
    assert (one.mean() - other.mean()).abs().max() > 1e-3
