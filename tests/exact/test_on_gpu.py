"""Exact scans on a GPU as users call them; skipped where there is none."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.devices import ACCELERATORS, CudaDevices
from patchindex.exact import ScoreRequest, choice, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.images.on_device import blocks_on, resident

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CUDA = torch.device("cuda:0")


class Full(CudaDevices):
    """GPUs without free memory."""

    def free_bytes(self, device):
        return 0


def full(monkeypatch):
    monkeypatch.setitem(ACCELERATORS, "cuda", Full(torch.cuda))


@pytest.fixture
def images(real_images):
    return real_images(600, 28, channels=3)[0]


def test_the_default_engine_agrees_with_the_cpu(images):
    """Six hundred images of full size, in a few blocks, by the engine that a GPU takes."""
    x = torch.from_numpy(brute.noisy(images[:2], 0.4))
    for name, k in (("ELS", 3), ("ELS", 17), ("ELS-wrapped", 5), ("bbELS", 7), ("LS", 9), ("IS", None)):
        on_cpu, on_gpu = (
            pi.ScoreMachine(images, estimator="exact", device=device, **brute.settings_of(name))
            for device in ("cpu", "cuda")
        )
        expected, found = on_cpu.posterior_mean(x, 0.4, k=k), on_gpu.posterior_mean(x.cuda(), 0.4, k=k)
        torch.testing.assert_close(found.mean.cpu(), expected.mean, rtol=0, atol=4e-5, msg=f"{name} {k}")
        torch.testing.assert_close(found.ess.cpu(), expected.ess, rtol=2e-3, atol=0)


@pytest.mark.parametrize("memory", [1 << 20, 1 << 28])
def test_streamed_and_resident_images_give_the_same(images, monkeypatch, memory):
    x = torch.from_numpy(brute.noisy(images[:1], 0.4)).to(CUDA)
    states = []
    for fits in (True, False):
        if not fits:
            full(monkeypatch)
        training = TrainingImages(images)
        request = ScoreRequest(training, Geometry.of("ELS", 7, (28, 28)), x, 0.36, memory=memory)
        states.append(scan(request))
        assert (resident(training, CUDA) is not None) == fits
    torch.testing.assert_close(states[0].mean(), states[1].mean(), rtol=0, atol=1e-6)
    assert torch.equal(states[0].count, states[1].count)


def test_blocks_come_through_pinned_memory_in_order(images, monkeypatch):
    full(monkeypatch)
    chosen = TrainingImages(images).select(np.random.default_rng(0).permutation(600))
    with blocks_on(chosen, CUDA, 0, 600, most=37) as blocks:
        found = torch.cat([block.clone() for block in blocks])
    assert found.device == CUDA
    np.testing.assert_array_equal(found.cpu(), chosen.read(0, 600))


def test_engines_that_are_named_agree(images):
    x = torch.from_numpy(brute.noisy(images[:1], 0.4)).to(CUDA)
    machines = [
        pi.ScoreMachine(images, estimator="exact", engine=engine, device="cuda") for engine in choice.ENGINES
        if engine != "cpu"
    ]  # fmt: skip
    first, *others = (machine.posterior_mean(x, 0.4, k=5).mean for machine in machines)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=4e-5)
