"""Posterior means of real images, kept in golden_fashion.npz and made by brute force."""

from __future__ import annotations

from pathlib import Path

import brute
import numpy as np
import pytest
import torch

import patchindex as pi

GOLDEN = Path(__file__).parent / "golden_fashion.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as archive:
        return {key: archive[key] for key in archive.files}


def machine_of(golden, name, **settings):
    return pi.ScoreMachine(
        golden["images"], golden["labels"], estimator="exact", **brute.settings_of(name), **settings
    )


def estimate(machine, golden, i):
    label, k = int(golden["label"][i]), int(golden["k"][i])
    x, t = torch.from_numpy(golden["x"][i : i + 1]), float(golden["t"][i])
    return machine.posterior_mean(x, t, k=k or None, label=None if label < 0 else label).mean[0].numpy()


def test_the_file_covers_every_machine_scale_time_and_label(golden):
    cases = set(zip(*(golden[key].tolist() for key in ("machine", "k", "t", "label")), strict=True))
    expected = {
        (machine, k, t, label)
        for machine in brute.MACHINES
        for k in ((0,) if machine == "IS" else (3, 5, 9))
        for t in (0.05, 0.3, 0.6, 0.95)
        for label in (-1, 5)
    }
    assert cases == expected
    assert len(golden["t"]) == len(expected) == 104
    assert (np.diff(golden["labels"]) < 0).any()  # the file is not in label order, which would hide mistakes
    assert GOLDEN.stat().st_size < 300_000


def test_brute_force_recomputes_the_file(golden):
    for i in np.random.default_rng(0).choice(len(golden["t"]), 8, replace=False):
        label = golden["label"][i]
        members = golden["images"] if label < 0 else golden["images"][golden["labels"] == label]
        again = brute.posterior_mean(
            members, golden["x"][i], float(golden["beta"][i]), str(golden["machine"][i]), int(golden["k"][i])
        )
        # Both are float64; another BLAS may sum in another order.
        np.testing.assert_allclose(again.mean, golden["posterior_mean"][i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_exact_agrees_with_brute_force(golden, name, dtype):
    machine = machine_of(golden, name, dtype=dtype)
    for i in np.flatnonzero(golden["machine"] == name):
        expected = golden["posterior_mean"][i]
        t, k, label = (golden[key][i] for key in ("t", "k", "label"))
        assert machine.noise(float(t)) == pytest.approx(float(golden["beta"][i]), rel=1e-12)
        # float32 logits are up to 3e4 at t = 0.05, where their rounding is 1e-3. From float64 only the result
        # is rounded to float32.
        bound = 1e-6 if dtype == torch.float64 else 2e-5 if t >= 0.3 else 5e-4
        error = np.abs(estimate(machine, golden, i) - expected).max() / np.abs(expected).max()
        assert error < bound, (name, f"{k=} {t=} {label=} {error=}")
