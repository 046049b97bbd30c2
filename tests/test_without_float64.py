"""A device without float64, as MPS is: `fake_gpu.py` refuses each float64 tensor there."""

from __future__ import annotations

from dataclasses import replace

import brute
import fake_gpu
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import DeviceError, PatchIndexWarning
from patchindex.exact import ScoreRequest, scan, scan_parts
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

MPS = torch.device("mps:0")
T, K = 0.4, 3
FLOAT32 = 2e-5  # of the largest value: the bound of all engines at t >= 0.3


@pytest.fixture
def mps(monkeypatch):
    return fake_gpu.install(monkeypatch, "mps", float64=False)


@pytest.fixture(scope="module")
def data(real_images):
    return real_images(40, 10, classes=(1, 4, 9))


@pytest.fixture(scope="module")
def x(real_images):
    return torch.from_numpy(brute.noisy(real_images(2, 10, skip=900)[0], T))


def brute_force(images, x, name):
    """Return the posterior means of noisy images in float64."""
    found = [brute.posterior_mean(images, each, brute.beta_of(T), name, K) for each in x.numpy()]
    return torch.from_numpy(np.stack([each.mean for each in found]))


def machine_on(device, data, name="ELS", **how):
    return pi.ScoreMachine(*data, **brute.settings_of(name), device=device, **how)


def test_the_fake_device_has_no_float64(mps):
    with mps:
        there, wide = torch.ones(3, device="mps"), torch.ones(3, dtype=torch.float64)
        assert there.device == wide.to("mps", torch.float32).device == MPS
        for convert in (
            there.double,
            lambda: wide.to("mps"),
            lambda: there.to("cpu", torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
        ):
            with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
                convert()


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_exact_scores_are_those_of_brute_force(mps, data, x, name, label):
    images, labels = data
    expected = brute_force(images if label is None else images[labels == label], x, name)
    with mps:
        machine = machine_on("mps", data, name, estimator="exact", engine="offsets")
        found = machine.posterior_mean(x, T, k=K, label=label)
        assert {found.mean.device, found.stderr.device, found.ess.device} == {MPS}
        assert machine.score_of(found.mean, x, T).device == MPS
    torch.testing.assert_close(found.mean.double(), expected, rtol=0, atol=FLOAT32)


def test_states_of_parts_and_pixels_are_on_the_cpu(mps, data, x):
    training = TrainingImages(data[0])
    mask = torch.zeros(2, 10, 10, dtype=torch.bool)
    mask[0, 3:5, 2:9] = mask[1, 0, 0] = True
    expected = scan(ScoreRequest(training, Geometry.of("ELS", K, (10, 10)), x, brute.beta_of(T)))
    with mps:
        request = ScoreRequest(
            training, Geometry.of("ELS", K, (10, 10)), x.to("mps"), brute.beta_of(T), engine="offsets"
        )
        parts = scan_parts(request, [0, 3, 40])
        some = scan(replace(request, pixels=mask.to("mps")))
    assert (parts.weight.dtype, parts.weight.device) == (torch.float64, torch.device("cpu"))
    for found, wanted in ((parts.reduce(0), expected), (some, expected[mask])):
        torch.testing.assert_close(found.mean(), wanted.mean(), rtol=0, atol=FLOAT32)
        torch.testing.assert_close(found.log_weight(), wanted.log_weight(), rtol=1e-6, atol=1e-3)
        torch.testing.assert_close(found.ess(), wanted.ess(), rtol=1e-3, atol=0)
        assert torch.equal(found.count, wanted.count)


def test_a_batch_of_several_times_keeps_its_order(mps, data, x):
    times = torch.tensor([0.6, 0.4])
    expected = [machine_on("cpu", data, locality=K).posterior_mean(x[i : i + 1], times[i]) for i in (0, 1)]
    with mps:
        machine = machine_on("mps", data, locality=K, engine="offsets")
        found = machine.posterior_mean(x, times.to("mps")).mean
    torch.testing.assert_close(found, torch.cat([each.mean for each in expected]), rtol=0, atol=FLOAT32)


def test_auto_without_an_index(mps, real_images, x):
    images = real_images(1500, 10)[0]

    def estimate(device):
        machine = pi.ScoreMachine(
            images, estimator="auto", tolerance=0.1, locality=K, engine="offsets", device=device
        )
        return machine.posterior_mean(x, T)

    expected = estimate("cpu")
    with mps:
        found = estimate("mps")
    for name in ("mean", "stderr", "captured_mass"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4)


def test_samples(mps, data):
    def drawn(device):
        machine = machine_on(device, data, locality=K, estimator="exact", engine="offsets")
        return pi.sample(machine, n=2, steps=4, seed=1).images.cpu()

    expected = drawn("cpu")
    with mps:
        found = drawn("mps")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_noise_is_added_in_float64(mps, data, x):
    times = torch.tensor([0.2, 0.6])
    expected = machine_on("cpu", data).add_noise(x.clamp(-1, 1), times, seed=3)
    with mps:
        found = machine_on("mps", data).add_noise(x.clamp(-1, 1).to("mps"), times, seed=3)
        assert found.device == MPS
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["wiener", "pca-locality", "pspc", "smoothed", "nearest"])
def test_other_denoisers(mps, data, x, name):
    how = {"locality": K} if name == "pspc" else {}
    expected = pi.denoiser(name, data[0], **how).posterior_mean(x, T)
    with mps:
        found = pi.denoiser(name, data[0], device="mps", **how).posterior_mean(x, T)
        assert found.mean.device == found.ess.device == MPS
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ELS", "IS"])
def test_patches_of_pixels(mps, data, x, name):
    def explained(device):
        machine = machine_on(device, data, name, locality=K, estimator="exact")
        return machine.explain(x, T, [(3, 4), (0, 9)], top=5)

    expected = explained("cpu")
    with mps:
        found = explained("mps")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal((a.image, a.y, a.x), (b.image, b.y, b.x))
        np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)


def test_lists_are_made_and_searched_on_the_cpu_and_one_message_says_so(mps, data, x, tmp_path):
    says = "device mps: FAISS has no MPS support: the CPU makes and searches inverted lists"
    with mps, pytest.warns(PatchIndexWarning, match=says):
        index = pi.build_index(data[0], tmp_path / "s.zarr", scales=(K,), device="mps")
    assert index.device == torch.device("cpu")
    expected = pi.ScoreMachine(index, estimator="topk").posterior_mean(x, T, k=K)
    with mps:
        with pytest.warns(PatchIndexWarning, match=says):
            machine = pi.ScoreMachine(tmp_path / "s.zarr", estimator="topk", device="mps")
        found = machine.posterior_mean(x, T, k=K)
        assert found.mean.device == MPS
        patches = machine.explain(x, T, [(3, 4)], k=K, top=3)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-4)
    assert patches[0].weight.sum() <= 1


def test_float64_is_refused_before_any_work(mps, data):
    words = (
        "device mps: the device has no float64; use float32 .its sums are float64, on the CPU., or device="
    )
    with mps, pytest.raises(DeviceError, match=words) as caught:
        machine_on("mps", data, estimator="exact", dtype=torch.float64)
    assert caught.value.exit_code == 2


def test_the_fused_kernel_is_refused_and_its_replacement_is_said(mps, data, x, monkeypatch):
    pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with mps:
        with pytest.raises(DeviceError, match="device mps: the engine 'fused' needs a CUDA device; leave"):
            machine_on("mps", data, estimator="exact", engine="fused")
        machine = machine_on("mps", data, estimator="exact", locality=K)
        with pytest.warns(PatchIndexWarning, match="exact scans take the slower engine 'offsets', because"):
            machine.posterior_mean(x, T)
