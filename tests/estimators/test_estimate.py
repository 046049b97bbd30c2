"""`Estimate`: it names its method, and prints in one line."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import patchindex as pi


@pytest.fixture
def never_exact(monkeypatch):
    monkeypatch.setattr("patchindex.estimators.auto._scan_seconds", lambda *args: 1e9)


def test_an_estimate_of_a_near_field_says_so(store, held_out, never_exact):
    x = held_out(0.3)
    e = pi.ScoreMachine(store, tolerance=1, probes=150, candidates=512).posterior_mean(x, 0.3, k=5)
    assert e.method == "near field"
    assert repr(e).startswith("Estimate(2 images of 1 x 14 x 14: near field, ")
    assert repr(replace(e, stderr=e.stderr + 0.01234)).endswith(" per pixel, standard error at most 0.012)")
    top = pi.ScoreMachine(store, estimator="topk").posterior_mean(x, 0.3, k=5)
    assert top.method == "topk"
    assert re.search(r": topk, \d+ patches per pixel\)$", repr(top))  # its error is unknown


def test_methods_of_images_at_different_times_are_joined(store, held_out):
    x = held_out(0.3)
    machine = pi.ScoreMachine(store)  # an exact scan of 40 images is cheaper than a near field
    e = machine.posterior_mean(x, torch.tensor([0.3, 0.5]), k=5)
    assert e.method == "exact"
    assert e.exact_pixels == 2 * 14 * 14
    other = pi.ScoreMachine(store, estimator="topk").posterior_mean(x, 0.3, k=5)
    assert type(e).cat([e, other, e]).method == "exact, topk"


def test_a_random_sample_without_an_index_says_so():
    images = np.random.default_rng(0).integers(0, 256, (1100, 6, 6), np.uint8)
    machine = pi.ScoreMachine(images, estimator="auto", locality=3, tolerance=0.5)
    assert machine.posterior_mean(torch.zeros(1, 1, 6, 6), 0.9).method == "sample"


def test_a_denoiser_without_an_estimator_names_no_method(real_images):
    e = pi.denoiser("wiener", real_images(9, 8)[0]).posterior_mean(torch.zeros(1, 1, 8, 8), 0.5)
    assert e.method == ""
    assert repr(e) == "Estimate(1 image of 1 x 8 x 8)"
