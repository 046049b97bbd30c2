"""All 104 cases of the golden file of CIFAR-10 that the project shares: 40 real colour images, float64."""

from __future__ import annotations

from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

from patchindex.exact import ScoreRequest, cpu, scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import threads
from patchindex.schedules import cosine

NAME = "golden/cifar10_40.npz"


@pytest.fixture(scope="module")
def golden(shared_file):
    with np.load(shared_file(NAME)) as archive:
        return {key: archive[key] for key in archive.files}


def cases(golden, name, t):
    """Yield the request, the expected posterior mean (C, H, W) and a description of each case."""
    training = TrainingImages(golden["images"], golden["labels"])
    rows = np.flatnonzero((golden["machine"] == name) & (golden["t"] == t))
    assert len(rows) == (2 if name == "IS" else 6)
    for i in rows:
        k, label, beta = int(golden["k"][i]), int(golden["label"][i]), float(golden["beta"][i])
        assert cosine(t) == pytest.approx(beta, rel=1e-6)
        geometry = Geometry.of(k=k or None, size=training.size, **brute.settings_of(name))
        x = torch.from_numpy(golden["x"][i : i + 1])
        request = ScoreRequest(training, geometry, x, beta, label=None if label < 0 else label)
        yield request, golden["posterior_mean"][i], f"{name} {k=} {t=} {label=}"


def bound(t, dtype=torch.float32):
    """The largest error over the largest value: float32 logits reach 7e4 at t = 0.05."""
    return 1e-9 if dtype == torch.float64 else 2e-5 if t >= 0.3 else 5e-4


def test_the_cases_below_are_all_there_are(golden):
    assert len(golden["t"]) == 104
    assert set(golden["machine"].tolist()) == set(brute.MACHINES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_exact_agrees_with_the_shared_golden_file(golden, name, t, dtype):
    for request, expected, case in cases(golden, name, t):
        mean = scan(replace(request, dtype=dtype)).mean()[0].permute(2, 0, 1).numpy()
        assert np.abs(mean - expected).max() < bound(t, dtype) * np.abs(expected).max(), case


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_threads_and_tiles_agree_on_the_shared_golden_file(golden, monkeypatch, name, t):
    """One thread or two, blocks of all images or a few, tiles of 16 images or the usual number."""
    for request, _, case in cases(golden, name, t):
        request = replace(request, x=request.x.float())
        means = []
        for threads_, memory, lanes in ((2, 256 << 20, None), (1, 256 << 20, None), (2, 1 << 18, 16)):
            with monkeypatch.context() as patch, threads(threads_):
                if lanes is not None:
                    patch.setattr(cpu, "lanes", lambda geometry, images, lanes=lanes: lanes)
                means.append(scan(replace(request, memory=memory)).mean())
        # Logits of whole images are sums of 3 072 float32 products, whose order differs with processors too.
        for mean in means[1:]:
            torch.testing.assert_close(
                mean, means[0], rtol=0, atol=4e-6, msg=lambda text, case=case: f"{case}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.05, 0.3])
@pytest.mark.parametrize("name", brute.MACHINES[1:])
def test_pixels_one_by_one_agree_with_the_shared_golden_file(golden, monkeypatch, name, t):
    monkeypatch.setattr(cpu, "pixel_cost", lambda plan: 1e-9)
    some = torch.arange(0, 1024, 11)
    for request, expected, case in cases(golden, name, t):
        mean = scan(replace(request, x=request.x.float(), pixels=[some])).mean().T.numpy()
        error = np.abs(mean - expected.reshape(3, -1)[:, some]).max()
        assert error < bound(t) * np.abs(expected).max(), case
