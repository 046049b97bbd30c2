"""On a fake GPU (`fake_gpu.py`), posterior means mix no devices, and equal the CPU's."""

from __future__ import annotations

import fake_gpu
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.images.by_label import TrainingImages
from patchindex.images.on_device import resident

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
GPU = torch.device("cuda:0")


@pytest.fixture(scope="module")
def data(real_images):
    return real_images(60, 10, classes=(1, 4, 9))


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gpu(monkeypatch):
    return fake_gpu.install(monkeypatch)


def assert_same_mean(gpu, make, x, tolerance=2e-5, **how):
    """The denoiser that `make(device)` returns has the same posterior mean on both devices."""
    expected = make("cpu").posterior_mean(x, 0.5, **how)
    with gpu:
        found = make("cuda").posterior_mean(x, 0.5, **how)
        assert found.mean.device == found.stderr.device == GPU
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=tolerance)


def test_the_fake_gpu_refuses_what_a_gpu_refuses():
    with fake_gpu.FakeGPU():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (there + 1).device == there[here.long()].device == there.to(here).to("cuda:0").device
        for mix in (lambda: here + there, lambda: here[there.long()], lambda: torch.stack([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize(
    ("machine", "engine"),
    [("ELS", "offsets"), ("bbELS", "offsets"), ("LS", "offsets"), ("IS", None), ("ELS", "fused")],
)
def test_exact_scores(gpu, data, x, machine, engine, label):
    if engine == "fused":
        pytest.importorskip("triton", minversion="3.2")

    def make(device):
        named = {} if device == "cpu" else {"engine": engine}
        return pi.ScoreMachine(*data, machine=machine, estimator="exact", device=device, **named)

    assert_same_mean(gpu, make, x, k=3, label=label)


@pytest.mark.parametrize("machine", ["LS", "IS"])
def test_images_that_do_not_fit_are_streamed(monkeypatch, data, x, machine):
    gpu = fake_gpu.install(monkeypatch, free=data[0].nbytes)

    def make(device):
        named = {} if device == "cpu" else {"engine": "offsets"}
        return pi.ScoreMachine(*data, machine=machine, estimator="exact", device=device, **named)

    assert_same_mean(gpu, make, x, k=3)
    with gpu:
        assert resident(TrainingImages(*data), GPU) is None


def test_auto(gpu, real_images, x):
    images = real_images(1500, 10)[0]

    def make(device):
        return pi.ScoreMachine(
            images, estimator="auto", tolerance=0.1, locality=3, engine="offsets", device=device
        )

    assert_same_mean(gpu, make, x)


@pytest.mark.parametrize("name", ["wiener", "pca-locality", "pspc", "smoothed", "nearest"])
def test_other_denoisers(gpu, data, x, name):
    how = {"locality": 3} if name == "pspc" else {}
    assert_same_mean(gpu, lambda device: pi.denoiser(name, data[0], device=device, **how), x, 1e-4)


def test_samples(gpu, data):
    def make(device):
        return pi.ScoreMachine(*data, locality=3, engine="offsets", estimator="exact", device=device)

    expected = pi.sample(make("cpu"), n=2, steps=4, seed=1).images
    with gpu:
        images = pi.sample(make("cuda"), n=2, steps=4, seed=1).images.cpu()
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


def test_patches_of_pixels(gpu, data, x):
    pixels = [(3, 4), (0, 9)]

    def explained(device):
        machine = pi.ScoreMachine(data[0], locality=3, estimator="exact", device=device)
        return machine.explain(x, 0.3, pixels, top=5)

    expected = explained("cpu")
    with gpu:
        found = explained("cuda")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)


def test_patches_of_a_store(gpu, store, held_out):
    """Lists are searched on the CPU, and patches are compared on the GPU, where all images are."""
    x = held_out(0.4)
    for estimator in ("topk", "exact"):
        make = {"estimator": estimator}
        expected = pi.ScoreMachine(store, **make).posterior_mean(x, 0.4, k=3)
        with gpu:
            named = {"engine": "offsets"} if estimator == "exact" else {}
            found = pi.ScoreMachine(store, device="cuda", **make, **named).posterior_mean(x, 0.4, k=3)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-4)
