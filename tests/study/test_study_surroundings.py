"""Public functions under `torch.autocast` and other settings of the program: the same numbers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from ambient import default_dtype

import patchindex as pi
from patchindex import study
from patchindex.denoisers import image_moments
from patchindex.errors import InputError
from patchindex.exact import ScoreRequest, heaviest, scan
from patchindex.explain import explain_sample, mosaic, redraw
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.images.nearest import nearest_images
from patchindex.networks import TrainSettings, open_run, train
from patchindex.study.contributions import contributions, textured

SIZE = 10
LOGITS = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
CENTRES = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
OPTIONS = study.TheoryOptions(steps=3, network_steps=3, along=1, noised=1)


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(20, SIZE)[0]


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    return pi.build_index(images, tmp_path_factory.mktemp("store") / "s.zarr", (3,), machine="bbELS").path


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(images, folder, TrainSettings(options={"channels": 16, "layers": 1}, steps=1))
    return folder


class Inputs:
    """The arguments of the functions, made anew for each call, in its surroundings."""

    def __init__(self, images, store, run, folder):
        self.images, self.store, self.run, self.folder = images, store, run, folder

    @property
    def machine(self):
        return pi.ScoreMachine(self.images, machine="bbELS", locality=3)

    @property
    def training(self):
        return TrainingImages(self.images)

    @property
    def x(self):
        noise = np.random.default_rng(0).standard_normal((2, 1, SIZE, SIZE))
        return torch.from_numpy(
            (0.5 * (self.images[:2].transpose(0, 3, 1, 2) / 127.5 - 1) + noise).astype(np.float32)
        )

    def request(self, **pixels):
        geometry = Geometry.of("bbELS", 3, (SIZE, SIZE))
        return ScoreRequest(self.training, geometry, self.x, 0.5, **pixels)

    def trained(self):
        train(self.images, self.folder, TrainSettings(options={"channels": 16, "layers": 1}, steps=2))
        return open_run(self.folder).posterior_mean(self.x, 0.5).mean


FUNCTIONS = {
    "softmax": lambda i: pi.SoftmaxState.of(LOGITS, CENTRES),
    "scan": lambda i: scan(i.request()),
    "scan in float64": lambda i: scan(i.request(dtype=torch.float64)),
    "heaviest": lambda i: heaviest(i.request(), 3),
    "contributions": lambda i: contributions(i.request(pixels=[torch.arange(5), torch.arange(7)])),
    "textured": lambda i: textured(i.x),
    "nearest_images": lambda i: nearest_images(i.x, i.training, [(0, 0), (0, 1)]),
    "image_moments": lambda i: image_moments(i.training),
    "verify": lambda i: pi.verify(i.store).whole,
    "open_run": lambda i: open_run(i.run).posterior_mean(i.x, 0.5).mean,
    "train": Inputs.trained,
    "mosaic": lambda i: mosaic(i.machine, i.x[:1], 0.5, k=3),
    "explain_sample": lambda i: explain_sample(i.machine, redraw(i.machine, i.x[:1], steps=3), top=2).patches,
    "compare": lambda i: study.compare({"a": i.machine}, 1, 3),
    "theory": lambda i: study.theory(open_run(i.run), {"bbELS": i.machine}, 1, options=OPTIONS),
    "calibrate": lambda i: study.calibrate(i.images, i.machine, "bbELS", (3, 5), n=1, steps=3).rows,
    "calibrate on images": lambda i: study.calibrate(i.images, None, "LS", (3, 5), n=2, steps=3).rows,
    "originality": lambda i: study.originality(i.images[:2], i.images, i.machine, shift=1, times=(0.5,)),
    "memorisation": lambda i: study.memorisation(i.images, (3,), (0.3,), n=2, pixels=9),
    "count_features": lambda i: study.count_features({"a": i.machine}, study.count_strokes, 1, steps=3,
                                                     reference=i.images),
    "pearson_r": lambda i: study.pearson_r(i.x, i.x.flip(3)),
    "r2": lambda i: study.r2(i.x, i.x.flip(3)),
    "rmse": lambda i: study.rmse(i.x, i.x.flip(3)),
    "accuracy": lambda i: study.accuracy(i.machine.posterior_mean(i.x, 0.5), i.x),
}  # fmt: skip


def numbers(found):
    """Yield all numbers of a result but seconds."""
    if is_dataclass(found):
        found = {field.name: getattr(found, field.name) for field in fields(found)}
    if isinstance(found, dict):
        for name, value in found.items():
            if "seconds" not in str(name):
                yield from numbers(value)
    elif isinstance(found, torch.Tensor | np.ndarray):
        yield from np.asarray(found).ravel().tolist()
    elif isinstance(found, list | tuple):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, int | float):
        yield float(found)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_no_result(images, store, run, name, tmp_path):
    def call(number, surroundings):
        with surroundings:
            return list(numbers(FUNCTIONS[name](Inputs(images, store, run, tmp_path / str(number)))))

    expected = call(0, nullcontext())
    assert expected
    for number, surroundings in enumerate((torch.autocast("cpu", torch.bfloat16), default_dtype()), 1):
        found = call(number, surroundings)
        assert len(found) == len(expected)
        # Equal up to float32 sums in another order; bfloat16 would differ by 1e-2.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
        assert not all(map(math.isnan, found))


CALLS = {
    "build_index": lambda i: pi.build_index(i.images, i.folder, (3,), progress=3),
    "append": lambda i: pi.append(i.store, i.images, progress=3),
    "add_scales": lambda i: pi.add_scales(i.store, (5,), progress=3),
    "tune": lambda i: pi.tune(i.store, progress=3),
    "verify": lambda i: pi.verify(i.store, progress=3),
    "sample": lambda i: pi.sample(i.machine, progress=3),
    "posterior_mean": lambda i: i.machine.posterior_mean(i.x, 0.5, progress=3),
    "prepare": lambda i: i.machine.prepare(progress=3),
    "train": lambda i: train(i.images, i.folder, progress=3),
    "compare": lambda i: study.compare({"a": i.machine}, progress=3),
    "theory": lambda i: study.theory(i.machine, {"a": i.machine}, 1, progress=3),
    "calibrate": lambda i: study.calibrate(i.images, i.machine, progress=3),
    "originality": lambda i: study.originality(i.images, i.images, progress=3),
    "memorisation": lambda i: study.memorisation(i.images, progress=3),
    "count_features": lambda i: study.count_features({"a": i.machine}, study.count_strokes, progress=3),
    "mosaic": lambda i: mosaic(i.machine, i.x[:1], 0.5, progress=3),
    "redraw": lambda i: redraw(i.machine, i.x[:1], progress=3),
}


@pytest.mark.parametrize("name", CALLS)
def test_progress_that_cannot_be_called_is_refused(images, store, run, name, tmp_path):
    with pytest.raises(InputError, match=r"^progress: cannot be called, got 3; give a function of"):
        CALLS[name](Inputs(images, store, run, tmp_path / "new"))
