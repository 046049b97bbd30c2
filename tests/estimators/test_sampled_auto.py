"""`auto` without an index: within the tolerance, honest, and exact where the whole set is scanned."""

from __future__ import annotations

import brute
import fake_gpu
import h5py
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.devices import ACCELERATORS
from patchindex.errors import InputError
from patchindex.estimators import AutoPolicy
from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

SIZE = 10


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(2400, SIZE)


@pytest.fixture(scope="module")
def noisy_images(real_images):
    """Two other images, with the noise of time t."""
    return lambda t: torch.from_numpy(brute.noisy(real_images(2, SIZE, skip=5000)[0], t))


def machine(images, name="ELS", **options):
    return pi.ScoreMachine(*images, estimator="auto", **brute.settings_of(name), **options)


def exact_mean(images, x, t, k, name="ELS"):
    geometry = Geometry.of(k=k, size=x.shape[2:], **brute.settings_of(name))
    request = ScoreRequest(TrainingImages(images), geometry, x, brute.beta_of(t), dtype=torch.float64)
    return scan(request).mean().permute(0, 3, 1, 2)


def errors(estimate, truth):
    return (estimate.mean - truth).square().mean(1).sqrt()


@pytest.mark.parametrize("engine", [None, "offsets"])
@pytest.mark.parametrize(("name", "k", "t"), [("ELS", 3, 0.2), ("ELS-wrapped", 5, 0.9), ("bbELS", 5, 0.5)])
def test_pixels_are_within_the_tolerance_and_errors_are_honest(images, noisy_images, name, k, t, engine):
    x = noisy_images(t)
    options = {} if engine is None else {"engine": engine}
    e = machine(images, name, tolerance=0.03, **options).posterior_mean(x, t, k=k)
    off = errors(e, exact_mean(images[0], x, t, k, name))
    assert (e.stderr <= 0.03).all()
    assert (off <= 2 * e.stderr + 0.003).double().mean() >= 0.95
    # The pixels of an image share their sample, so one draw says less than their number.
    assert off.square().mean().sqrt() < 1.6 * e.stderr.square().mean().sqrt()
    assert e.captured_mass.min() < 0.5
    assert e.codes_scanned == 0


def test_pixels_that_stay_to_the_end_are_exact(images, noisy_images):
    x = noisy_images(0.4)
    e = machine(images, tolerance=0.003).posterior_mean(x, 0.4, k=5)
    whole = e.captured_mass == 1
    assert 0 < int(whole.sum()) == e.exact_pixels
    assert torch.equal(whole, e.stderr == 0)
    # The exact kernel's float32 against float64.
    assert (errors(e, exact_mean(images[0], x, 0.4, 5))[whole] < 2e-5).all()


def test_standard_errors_agree_with_errors_over_many_draws(images, noisy_images):
    """At high noise, where all patches have similar weights."""
    x = noisy_images(0.9)[:1]
    truth, m = exact_mean(images[0], x, 0.9, 5), machine(images, tolerance=0.05)
    off, stderr = [], []
    for seed in range(20):
        e = m.posterior_mean(x, 0.9, k=5, seed=seed)
        off.append(errors(e, truth))
        stderr.append(e.stderr)
    # Pixels share their images: the ratio of 20 draws varies by a sixth.
    ratio = torch.stack(off).square().mean().sqrt() / torch.stack(stderr).square().mean().sqrt()
    assert 0.6 < float(ratio) < 1.4


def test_a_patch_that_no_sample_is_likely_to_draw_is_found_in_the_end(images):
    """The noisy image is a training image at low noise: one patch of each pixel has nearly all weight."""
    x = torch.from_numpy(brute.noisy(images[0][:1], 0.08))
    e = machine(images, tolerance=0.02).posterior_mean(x, 0.08, k=5)
    off = errors(e, exact_mean(images[0], x, 0.08, 5))
    assert (off <= 0.06).double().mean() >= 0.99
    assert off.square().mean().sqrt() < 0.02


def test_equal_seeds_give_equal_means_in_any_batch(images, noisy_images):
    x = noisy_images(0.8)
    m = machine(images, tolerance=0.05)
    both = m.posterior_mean(x, 0.8, k=3, seed=3)
    second = m.posterior_mean(x[1:], 0.8, k=3, seed=3, image_ids=[7])
    torch.testing.assert_close(second.mean, both.mean[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(second.stderr, both.stderr[1:], rtol=1e-3, atol=1e-6)
    small = machine(images, tolerance=0.05, memory="1M").posterior_mean(x, 0.8, k=3, seed=3)
    torch.testing.assert_close(small.mean, both.mean, rtol=0, atol=1e-5)
    other = m.posterior_mean(x, 0.8, k=3, seed=5)
    large = m.posterior_mean(x, 0.8, k=3, seed=3 + 2**64)
    assert not torch.equal(large.mean, both.mean)
    assert (other.mean - both.mean).abs().max() > 1e-3


@pytest.mark.parametrize("tolerance", [0.03, 0.0001])
@pytest.mark.parametrize("label", [0, 5])  # the first images in the order of labels, and others
def test_a_label_restricts_the_sample(images, noisy_images, label, tolerance):
    pixels, labels = images
    x, shares = noisy_images(0.7), []
    e = machine((np.repeat(pixels, 5, 0), np.repeat(labels, 5)), tolerance=tolerance).posterior_mean(
        x, 0.7, k=3, label=label, progress=lambda _, done, total: shares.append(done / total)
    )
    off = errors(e, exact_mean(pixels[labels == label], x, 0.7, 3))
    assert (e.stderr > 0).any() == (tolerance > 0.01)
    assert off.square().mean().sqrt() < tolerance
    assert e.patches_evaluated <= x[:, 0].numel() * 5 * (labels == label).sum() * 8**2  # each of them once
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(("name", "count"), [("LS", 2000), ("IS", 2000), ("ELS", 1000)])
def test_exact_scores_where_a_sample_saves_nothing(images, noisy_images, name, count):
    x = noisy_images(0.5)
    e = machine((images[0][:count],), name).posterior_mean(x, 0.5, k=5)
    assert (e.stderr == 0).all()
    assert (errors(e, exact_mean(images[0][:count], x, 0.5, 5, name)) < 2e-5).all()


def test_images_that_are_unpacked_together_are_compared_exactly(images, noisy_images, tmp_path):
    """To read one of them in random order would unpack many."""
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file.create_dataset("images", data=images[0], chunks=(400, SIZE, SIZE, 1), compression="gzip")
    source, x = pi.open_images(tmp_path / "images.h5"), noisy_images(0.9)
    head, some = source.subset(1500), source.subset(np.arange(3, 1503))
    joined = pi.open_images([tmp_path / "images.h5"] * 2, limit=1500)
    for each in (source, head, some, joined, pi.open_images(some, crop=SIZE)):
        e = machine((each,), tolerance=0.1).posterior_mean(x, 0.9, k=3)
        assert e.method == "exact"


def test_a_tight_tolerance_costs_more(images, noisy_images):
    x = noisy_images(0.9)
    spent = [
        machine(images, tolerance=tolerance).posterior_mean(x, 0.9, k=3).patches_evaluated
        for tolerance in (0.1, 0.01, 0.002)
    ]
    assert spent[0] < spent[1] < spent[2]


def test_the_default_tolerance_is_a_hundredth(images, noisy_images):
    x = noisy_images(0.9)
    default, stated = (
        machine(images, **options).posterior_mean(x, 0.9, k=3) for options in ({}, {"tolerance": 0.01})
    )
    assert 0.005 < float(default.stderr.max()) <= 0.01
    assert torch.equal(default.mean, stated.mean)


def test_progress_grows_to_one(images, noisy_images):
    shares = []
    machine(images, tolerance=0.03, memory="1M").posterior_mean(
        noisy_images(0.5), 0.5, k=3, progress=lambda _, done, total: shares.append(done / total)
    )
    assert shares == sorted(shares)
    assert any(0.5 < share < 1 for share in shares)  # the second image alone, after the first
    assert shares[-1] == 1


def test_several_devices_give_the_same_estimate(images, noisy_images):
    x = noisy_images(0.8)
    one, two = (
        machine(images, tolerance=0.05, device=device).posterior_mean(x, 0.8, k=3)
        for device in ("cpu", "cpu,cpu")
    )
    torch.testing.assert_close(two.mean, one.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(two.stderr, one.stderr, rtol=1e-3, atol=1e-6)


def test_the_fused_kernel_gives_the_same_estimate(real_images):
    """On a GPU, or in Triton's interpreter."""
    pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = real_images(1100, 8)
    x = torch.from_numpy(brute.noisy(real_images(1, 8, skip=5000)[0], 0.8))
    fused = machine(images, tolerance=0.05, engine="fused", device=device).posterior_mean(
        x.to(device), 0.8, k=3
    )
    torch_ = machine(images, tolerance=0.05, engine="offsets").posterior_mean(x, 0.8, k=3)
    assert (fused.stderr > 0).any()
    torch.testing.assert_close(fused.mean.cpu(), torch_.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(fused.stderr.cpu(), torch_.stderr, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_store_on_a_gpu_is_sampled(store, held_out):
    m = pi.ScoreMachine(store.path, device="cuda")
    assert m.estimator == "auto"
    assert not m.searches_index
    e = m.posterior_mean(held_out(0.5).cuda(), 0.5, k=3)
    assert (e.stderr == 0).all()  # forty images are computed exactly
    assert e.mean.device.type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the test above draws on it")
def test_auto_does_not_search_the_index_on_a_gpu(store, monkeypatch):
    monkeypatch.setitem(ACCELERATORS, "cuda", fake_gpu.Fake([1 << 30]))
    opened = pi.open_index(store.path, device="cuda")
    assert not pi.ScoreMachine(opened, estimator="auto", device="cuda").searches_index


def test_an_index_gives_its_images_to_a_named_engine(store, held_out):
    e = pi.ScoreMachine(store, estimator="auto", engine="offsets").posterior_mean(held_out(0.5), 0.5, k=7)
    assert e.codes_scanned == 0  # and the index has no scale of 7
    assert not pi.ScoreMachine(store, estimator="auto", engine="offsets").searches_index
    assert pi.ScoreMachine(store, estimator="auto").searches_index


def test_patches_behind_a_pixel_are_compared_exactly(images, noisy_images):
    found = machine(images, locality=3).explain(noisy_images(0.3), 0.3, [(4, 5)], top=4)
    assert found[0].method == "exact"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": 8}, "probes: applies to an index on the CPU only"),
        ({"candidates": 8, "engine": "offsets"}, "candidates: applies to an index on the CPU only"),
        ({"policy": AutoPolicy(missed=0.2)}, "policy: applies to an index on the CPU only"),
        ({"tolerance": 0}, "tolerance: must be a number above 0"),
        ({"tolerance": 1e200}, "tolerance: must be a number above 0 and at most 2, got 1e"),
        ({"engine": "warp"}, "unknown engine 'warp'"),
        ({"dtype": torch.float64}, "auto computes in float32 only"),
    ],
)
def test_bad_settings_are_refused(images, options, words):
    with pytest.raises(InputError, match=words):
        machine(images, **options)
