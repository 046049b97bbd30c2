"""Stores of images without variance, and of images that the codes do not fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import PatchIndexWarning
from patchindex.estimators import AutoPolicy


def grey_in_colour(real_images, n):
    return np.repeat(real_images(n, 10)[0], 3, axis=3)


def one_colour(n):
    return np.full((n, 10, 10, 3), 50, np.uint8)


@pytest.mark.parametrize("machine", ["ELS", "bbELS"])
def test_stores_of_images_without_variance_are_whole(real_images, tmp_path, machine):
    grey = grey_in_colour(real_images, 20)
    for name, images in {
        "grey": grey,
        "one": grey[:1],
        "copies": np.repeat(grey[:1], 8, 0),
        "one colour": one_colour(4),
        "colours": np.broadcast_to(np.arange(0, 240, 30, dtype=np.uint8)[:, None, None], (8, 10, 10)).copy(),
    }.items():
        index = pi.build_index(images, tmp_path / f"{name}.zarr", [3, 5], machine=machine)
        assert pi.verify(index.path).problems == (), name
        again = pi.append(index.path, images)
        assert pi.verify(again.path).problems == (), name


def test_codes_of_rounding_errors_are_no_damage(real_images, tmp_path, monkeypatch):
    """Earlier versions gave a component without variance a range of rounding errors."""

    def narrow(sample):
        low = sample.min(0)
        return np.stack([low, sample.max(0) - low]).astype(np.float32)

    monkeypatch.setattr("patchindex.build.train.fit_ranges", narrow)
    index = pi.build_index(grey_in_colour(real_images, 20), tmp_path / "s.zarr", [3], pca_dims=24)
    assert index.scale(3).model.ranges[1].min() < 1e-5
    assert pi.verify(index.path).problems == ()


def test_codes_of_grey_images_have_room_for_colours(real_images, tmp_path):
    index = pi.build_index(grey_in_colour(real_images, 20), tmp_path / "s.zarr", [3], pca_dims=24)
    widths = index.scale(3).model.ranges[1]
    assert widths.min() > 0.05


def test_estimators_warn_of_appended_images_that_the_lists_do_not_fit(real_images, tmp_path):
    index = pi.build_index(grey_in_colour(real_images, 20), tmp_path / "s.zarr", [3])
    x = torch.zeros(1, 3, 10, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pi.append(index.path, grey_in_colour(real_images, 30)[20:])
        pi.ScoreMachine(index.path, estimator="topk").posterior_mean(x, 0.5, k=3)
    pi.append(index.path, real_images(20, 10, channels=3)[0])
    for estimator in ("topk", "auto"):
        machine = pi.ScoreMachine(
            index.path, estimator=estimator, probes=4, candidates=8, **auto_always(estimator)
        )
        with pytest.warns(PatchIndexWarning, match="standard errors may be too small; build the store again"):
            machine.posterior_mean(x, 0.5, k=3)


def auto_always(estimator):
    return {"policy": AutoPolicy(cost_limit=np.inf)} if estimator == "auto" else {}
