"""The registry of denoisers, and the checks that all denoisers share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.denoisers import TrainingDenoiser, parse_denoiser, takes_locality
from patchindex.denoisers.registry import DENOISERS
from patchindex.errors import InputError

MACHINES = ("IS", "LS", "ELS", "bbELS")


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(12, 10, classes=(2, 5, 8))


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("registry") / "s.zarr"
    return pi.build_index(images[0], path, labels=images[1], locality=[3, 3, 5, 5], machine="bbELS")


@pytest.fixture
def own_denoiser():
    """A denoiser of a user, registered for one test."""

    @pi.register_denoiser("average")
    class Average(TrainingDenoiser):
        def __init__(self, source, labels=None, *, shift: float = 0.0, **options):
            super().__init__(source, labels, **options)
            self.shift = shift

        def _estimate(self, x, beta, call):
            lo, hi = self.training.range_of(call.label)
            mean = torch.from_numpy(self.training.read(lo, hi).mean(0)).permute(2, 0, 1) / 127.5 - 1
            one = torch.ones_like(x[:, 0])
            return pi.Estimate(mean.float().expand_as(x), 0 * one, one, one, patches_evaluated=0)

    yield Average
    del DENOISERS["average"]


@pytest.mark.parametrize("name", MACHINES)
def test_a_store_serves_every_score_machine(name, images, store):
    x = torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    m = pi.denoiser(name, store, estimator="exact")
    expected = pi.ScoreMachine(images[0], images[1], machine=name, locality=[3, 3, 5, 5])
    for label in (None, 5):
        mean = expected.posterior_mean(x, 0.6, label=label).mean
        torch.testing.assert_close(m.posterior_mean(x, 0.6, label=label).mean, mean, rtol=0, atol=1e-6)


def test_the_machine_of_the_store_uses_its_index(store):
    assert pi.denoiser("bbELS", store).index is store
    assert pi.denoiser("bbELS", str(store.path)).estimator == "auto"
    assert pi.denoiser("LS", str(store.path)).estimator == "exact"


def test_sample_takes_a_registered_denoiser(own_denoiser, images):
    m = pi.denoiser("average", images[0], images[1])
    assert isinstance(m, own_denoiser)
    drawn = pi.sample(m, n=3, steps=4, seed=1, batch_size=2, label=8)
    expected = images[0][images[1] == 8].mean(0)[None, None, :, :, 0] / 127.5 - 1
    # The posterior mean does not depend on x, and DDIM ends at the last posterior mean.
    assert abs(drawn.images.numpy() - expected).max() < 1e-5
    assert drawn.settings["denoiser"] == "Average"
    assert [step["k"] for step in drawn.steps] == [None] * 6


@pytest.mark.parametrize("name", ["bbELS", "LS", "IS", "wiener"])
def test_labels_are_fixed_in_a_store(store, name):
    with pytest.raises(InputError, match="labels: is fixed in the store; leave it out, or give the images"):
        pi.denoiser(name, store, labels=np.zeros(len(store.training), int))


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(InputError, match="'LS' is taken"):
        pi.register_denoiser("LS")(lambda source, labels: None)


def test_an_unknown_name_is_refused_with_the_known_names(images):
    with pytest.raises(InputError, match=r"unknown denoiser 'ls'.* IS, LS, ELS, bbELS"):
        pi.denoiser("ls", images[0])


@pytest.mark.parametrize("name", ["wiener", "smoothed", "nearest", "IS"])
def test_an_unknown_option_is_refused(name, images):
    with pytest.raises(InputError, match=r"has no option 'width'; (its options are|it has none)"):
        pi.denoiser(name, images[0], width=3)


@pytest.mark.parametrize("machine", ["ELS", "LS"])
def test_a_name_of_a_machine_takes_no_other_machine(images, machine):
    with pytest.raises(InputError, match="machine: is LS by the name of the denoiser; leave it out"):
        pi.denoiser("LS", images, machine=machine)


def test_texts_have_the_options_of_a_class_and_not_those_that_all_share(own_denoiser):
    assert parse_denoiser("average:shift=0.5") == ("average", {"shift": 0.5})
    with pytest.raises(InputError, match="machine: average has no option 'threads'; its options are shift"):
        parse_denoiser("average:threads=2")
    assert pi.denoiser("average", np.zeros((2, 4, 4), np.uint8), shift=0.5, threads=1).shift == 0.5


def test_a_label_that_no_image_has_is_refused(own_denoiser, images):
    with pytest.raises(InputError, match="no image has label 3"):
        pi.denoiser("average", images[0], images[1], label=3)
    m = pi.denoiser("average", images[0], images[1])
    with pytest.raises(InputError, match="no image has label 3"):
        m.posterior_mean(torch.zeros(1, 1, 10, 10), 0.5, label=3)


def test_damaged_images_of_a_store_are_found_by_another_machine(images, tmp_path):
    path = tmp_path / "s.zarr"
    pi.build_index(images[0], path, machine="IS")
    file = max((f for f in (path / "images").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(pi.PatchIndexError, match="damaged"):
        pi.denoiser("LS", path, locality=3)


def test_a_negative_seed_is_refused(images):
    with pytest.raises(InputError, match="seed"):
        pi.denoiser("IS", images[0]).posterior_mean(torch.zeros(1, 1, 10, 10), 0.5, seed=-1)


def test_every_denoiser_accepts_a_locality_schedule(real_images):
    images, _ = real_images(12, 8)
    for name in DENOISERS:
        made = pi.denoiser(name, images, locality=[3, 3, 5])
        assert made.scale_at(0.9) == (5 if takes_locality(name) else None)
        assert ("locality" in made.settings and made.settings["locality"] is not None) == takes_locality(name)
    assert [name for name in DENOISERS if takes_locality(name)] == ["LS", "ELS", "bbELS", "pspc"]
