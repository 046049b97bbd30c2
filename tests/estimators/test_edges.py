"""Estimators with large inputs, odd options, little memory, and damaged operating curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr
from ambient import default_dtype

import patchindex as pi
from patchindex.errors import InputError, StoreError
from patchindex.estimators import AutoPolicy
from patchindex.index.layout import scale_group
from patchindex.store.checksums import CURVE, write_checksummed, write_manifest

ESTIMATORS = {
    "topk": {"candidates": 6000, "probes": 150},
    "auto": {
        "tolerance": 0.001,
        "probes": 150,
        "candidates": 6000,
        "policy": AutoPolicy(cost_limit=np.inf, first_strata=2),  # although scans of few images are faster
    },
}


@pytest.fixture(params=ESTIMATORS)
def way(request):
    return request.param, ESTIMATORS[request.param]


@pytest.mark.parametrize(
    ("largest", "t"), [(2, 0.3), (20, 0.3), (99.9, 0.3), (99.9, 0.9), (2, 1e-4), (2, 1e-9)]
)
def test_any_accepted_x_and_t_agrees_with_float64(store, held_out, way, largest, t):
    name, options = way
    x = held_out(0.3)
    x *= largest / x.abs().max()
    found = pi.ScoreMachine(store, estimator=name, **options).posterior_mean(x, t, k=3)
    exact = pi.ScoreMachine(store, estimator="exact", dtype=torch.float64).posterior_mean(x, t, k=3)
    # Everything is retrieved, so the error comes from float32 logits, and for `auto` from its sample.
    assert (found.mean - exact.mean).abs().max() < (5e-3 if name == "auto" else 1e-3)


@pytest.mark.parametrize("name", ["exact", *ESTIMATORS])
def test_inputs_with_gradients_and_another_default_dtype_give_equal_means(store, held_out, name):
    machine = pi.ScoreMachine(store, estimator=name)
    x = held_out(0.5)
    expected = machine.posterior_mean(x, 0.5, k=3).mean
    again = machine.posterior_mean(x.clone().requires_grad_(), 0.5, k=3).mean
    assert torch.equal(again, expected)
    with default_dtype():
        assert torch.equal(machine.posterior_mean(x, 0.5, k=3).mean, expected)


def test_numpy_numbers_and_large_seeds_are_accepted(store, held_out, way):
    name, options = way
    numbers = {key: np.asarray(v)[()] for key, v in options.items() if key != "policy"}
    machine = pi.ScoreMachine(store, estimator=name, **{**options, **numbers})
    found = machine.posterior_mean(
        held_out(0.5), 0.5, k=3.0, label=np.int64(4), image_ids=[3, 2**70], seed=2**70
    )
    assert torch.isfinite(found.mean).all()
    means = [
        machine.posterior_mean(held_out(0.5), 0.5, k=3, image_ids=ids).mean
        for ids in ([4, 9], torch.tensor([4, 9]), np.array([4, 9]))
    ]
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[0], means[2])
    assert torch.equal(
        *(machine.posterior_mean(held_out(0.5), 0.5, k=3, seed=s).mean for s in (7, np.int64(7)))
    )


@pytest.mark.parametrize(
    ("settings", "call", "words"),
    [
        ({"estimator": "topk", "candidates": 2.5}, {}, "candidates: must be a whole number"),
        ({"estimator": "topk", "candidates": True}, {}, "candidates: must be a whole number"),
        (
            {"estimator": "topk", "quality": 0.9, "probes": 8},
            {},
            "quality: chooses the probes, which are given; give one of the two",
        ),
        ({"estimator": "topk", "quality": 0.9}, {}, "quality: scale 3 of the store has no operating curve"),
        *(
            ({"estimator": "topk", "quality": quality}, {}, "quality: must be a number above 0 and at most 1")
            for quality in ("0.9", 0, 1.01)
        ),
        ({"estimator": "auto", "tolerance": "0.01"}, {}, "tolerance: must be a number above 0 and .* '0.01'"),
        *(
            (
                {"estimator": "auto", "tolerance": tolerance},
                {},
                "tolerance: must be a number above 0 and at most 2, got",
            )
            for tolerance in (0, -0.1, 2.01, 1e200, np.inf, np.nan, 10**400)
        ),
        (
            {"estimator": ["exact"]},
            {},
            r"estimator: unknown estimator \['exact'\]; use one of exact, topk, auto",
        ),
        ({"estimator": "exact", "engine": ["cpu"]}, {}, r"engine: unknown engine \['cpu'\]; use one of cpu"),
        ({"estimator": "best"}, {}, "unknown estimator 'best'; use one of exact, topk, auto"),
        (
            {"estimator": "topk", "depth": 3},
            {},
            "topk has no option 'depth'; its options are candidates, probes",
        ),
        (
            {"estimator": "exact", "candidates": 3},
            {},
            "exact has no option 'candidates'; its options are engine",
        ),
        ({"estimator": "topk", "candidates": 0}, {}, "candidates: must be at least 1, got 0"),
        ({"estimator": "topk", "probes": -1}, {}, "probes: must be at least 1, got -1"),
        ({"estimator": "topk", "dtype": torch.float64}, {}, "dtype: topk computes in float32 only"),
        ({"label": "4"}, {}, "label: no label is called '4'; give its number"),
        ({"threads": 0}, {}, "threads: must be a whole number from 1 to 1024"),
        ({}, {"label": "4"}, "label: no label is called '4'; give its number"),
        ({}, {"image_ids": [0]}, "image_ids: there are 1 numbers for 2 images"),
        ({}, {"image_ids": [0, -1]}, r"image_ids: must be at least 0, got \[0, -1\]"),
        ({}, {"image_ids": [0, 1, 2]}, "image_ids: there are 3 numbers for 2 images"),
    ],
)
def test_bad_settings_are_refused(store, held_out, settings, call, words):
    with pytest.raises(InputError, match=words):
        pi.ScoreMachine(store, **settings).posterior_mean(held_out(0.5), 0.5, k=3, **call)


def test_a_quality_of_one_is_accepted(store):
    assert pi.ScoreMachine(store, estimator="topk", quality=1).settings["options"] == {"quality": 1}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_more_candidates_and_probes_than_there_are_give_the_exact_means(store, held_out, name):
    """All patches are candidates. An array for the numbers asked for would not fit in any memory."""
    machine = pi.ScoreMachine(store, estimator=name, memory="1M", candidates=10**9, probes=10**6)
    found = machine.posterior_mean(held_out(0.5), 0.5, k=3).mean
    exact = pi.ScoreMachine(store, estimator="exact").posterior_mean(held_out(0.5), 0.5, k=3).mean
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)


def test_progress_grows_to_one(store, held_out, way):
    name, options = way
    shares, x = [], torch.cat([held_out(0.5)] * 3)  # more images than a search takes
    machine = pi.ScoreMachine(store, estimator=name, **{**options, "candidates": 8})
    machine.posterior_mean(x, 0.5, k=3, progress=lambda _, done, total: shares.append(done / total))
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_small_memory_changes_nothing(store, held_out, way):
    name, options = way
    large, small = (
        pi.ScoreMachine(store, estimator=name, memory=m, **options).posterior_mean(held_out(0.5), 0.5, k=3)
        for m in ("256M", "2M")
    )
    assert (
        torch.equal(large.mean, small.mean)
        if name != "topk"
        else (large.mean - small.mean).abs().max() < 1e-5
    )
    assert large.patches_evaluated == small.patches_evaluated


@pytest.mark.parametrize(
    "damage", [{"version": 2}, {"version": 2, "near": [{}], "top": []}, {"version": 2, "near": 3}]
)
def test_a_damaged_curve_is_refused(labelled, tmp_path, damage):
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3])
    folder = store.path / scale_group(3)
    store.scale(3).save_curve(damage)
    with pytest.raises(StoreError, match=r"operating_curve.json: its '\w+' is missing or damaged"):
        pi.ScoreMachine(pi.open_index(store.path)).posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)
    write_checksummed(folder / CURVE, ["none"])  # valid JSON, but not a curve
    with pytest.raises(StoreError, match="is of another scale"):
        pi.open_index(store.path).scale(3)
    (folder / CURVE).unlink()
    del zarr.open_group(folder, mode="a").attrs["pca_energy"]
    write_manifest(folder)
    with pytest.raises(StoreError, match="has no attribute 'pca_energy'"):
        pi.open_index(store.path).scale(3)
