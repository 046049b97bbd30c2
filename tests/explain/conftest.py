from __future__ import annotations

import pytest
import torch

import patchindex as pi


@pytest.fixture(scope="session")
def machine(real_images):
    """ELS of thirty colour images of three classes."""
    images, labels = real_images(30, (12, 10), channels=3, classes=(1, 4, 9))
    return pi.ScoreMachine(images, labels, machine="ELS", locality=[3, 3, 5, 7])


@pytest.fixture(scope="session")
def explanation(machine):
    """All steps of a sample of the machine."""
    noise = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(5))
    steps = pi.explain.redraw(machine, noise, steps=6)
    return pi.explain.explain_sample(machine, steps, top=5)
