"""Denoisers in a program with other settings, in forked processes and in pickles: the same numbers."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from ambient import default_dtype

import patchindex as pi
from patchindex.denoisers import takes_locality
from patchindex.denoisers.registry import DENOISERS
from patchindex.errors import PatchIndexError, StoreError

T = 0.4


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "NumPy errors": lambda: np.errstate(all="raise"),
    "inference mode": torch.inference_mode,
}


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(24, 12, channels=3)[0]


@pytest.fixture(scope="module")
def index(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    return pi.build_index(images, path, machine="bbELS", locality=[3, 3, 5, 5])


@pytest.fixture(scope="module")
def x():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32))


@pytest.fixture(scope="module")
def make(images, index):
    def of(name):
        if name.startswith("estimator "):
            return pi.ScoreMachine(index, estimator=name.removeprefix("estimator "))
        return pi.denoiser(name, images, **({"locality": [3, 3, 5, 5]} if takes_locality(name) else {}))

    return of


NAMES = [*DENOISERS, *(f"estimator {name}" for name in pi.ESTIMATORS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_settings_of_the_program_change_nothing(make, x, name, surroundings):
    expected, score = make(name).posterior_mean(x, T, seed=1), make(name).score(x, T)
    with SURROUNDINGS[surroundings]():
        machine = make(name)
        found, found_score = machine.posterior_mean(x, T, seed=1), machine.score(x, T)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found_score, score)
    machine.posterior_mean(x, T)  # what the machine keeps is of use outside, too


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_a_store_is_built_alike_in_any_surroundings(images, index, surroundings, tmp_path):
    with SURROUNDINGS[surroundings]():
        other = pi.build_index(
            images, tmp_path / "s.zarr", scales=(3, 5), machine="bbELS", locality=[3, 3, 5, 5]
        )
    assert pi.verify(other.path).whole
    for k in index.scales:
        np.testing.assert_array_equal(index.scale(k).pca.components, other.scale(k).pca.components)


def test_autocast_does_not_reach_a_network_or_the_sampler(x):
    kernel = torch.full((3, 3, 3, 3), 1 / 27)
    network = pi.networks.wrap(lambda x, t: torch.nn.functional.conv2d(x, kernel, padding=1), (3, 12, 12))
    expected = pi.sample(network, n=2, steps=4).images
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pi.sample(network, n=2, steps=4).images, expected)


class Broken(pi.Denoiser):
    """A denoiser whose mean is NaN in one pixel, or has another shape."""

    mean = torch.where(torch.arange(32).reshape(2, 1, 4, 4) == 17, torch.nan, 0.0)

    def _estimate(self, x, beta, call):
        return pi.Estimate(self.mean, *[torch.ones(2, 4, 4)] * 3, patches_evaluated=0)


def test_a_mean_that_is_not_finite_ends_in_an_error():
    denoiser, x = Broken((1, 4, 4)), torch.zeros(2, 1, 4, 4)
    words = "denoiser Broken: the posterior mean at t = 0.4 is not finite; check the function"
    for use in (denoiser.posterior_mean, denoiser.score):
        with pytest.raises(PatchIndexError, match=words):
            use(x, T)
    with pytest.raises(PatchIndexError, match=r"the posterior mean at t = 0\.5 is not finite"):
        pi.sample(denoiser, n=2, steps=2)
    denoiser.mean = torch.zeros(2, 1, 4, 5)
    with pytest.raises(PatchIndexError, match=r"is of shape \(2, 1, 4, 5\), not \(2, 1, 4, 4\)"):
        denoiser.posterior_mean(x, T)


@pytest.mark.parametrize("name", ["estimator auto", "estimator topk", "estimator exact"])
def test_a_pickled_machine_opens_its_store_again(make, x, name):
    machine = make(name)
    content = pickle.dumps(machine)
    assert len(content) < 4000  # the images alone take 10 368 bytes
    found = pickle.loads(content).posterior_mean(x, T, seed=1)
    torch.testing.assert_close(found.mean, machine.posterior_mean(x, T, seed=1).mean, rtol=0, atol=1e-5)


def test_a_store_with_a_relative_path_is_unpickled_in_another_folder(images, tmp_path, monkeypatch):
    pi.build_index(images[:8], tmp_path / "s.zarr", scales=[3])
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(pi.open_index("s.zarr"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(content).training) == 8


def test_a_pickled_store_that_was_replaced_is_refused(images, tmp_path):
    path = tmp_path / "s.zarr"
    content = pickle.dumps(pi.build_index(images[:8], path, scales=[3]))
    pi.build_index(images[8:16], path, scales=[3], overwrite=True)
    with pytest.raises(StoreError, match="is another store than the pickled one; open it again"):
        pickle.loads(content)


FORK = """
import os, signal, sys, warnings
import torch, patchindex as pi
torch.set_num_threads(2)
machines = [pi.ScoreMachine(sys.argv[1], estimator=name) for name in ("exact", "auto", "topk")]
machines.append(pi.denoiser("IS", sys.argv[1]))
machines.append(pi.denoiser("wiener", sys.argv[1]))
x = torch.randn(4, 3, 12, 12)
a = torch.ones(600, 600) @ torch.ones(600, 600)  # OpenMP starts its threads
expected = [m.posterior_mean(x, 0.4).mean for m in machines]
if (child := os.fork()) == 0:
    signal.alarm(60)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [m.posterior_mean(x, 0.4).mean for m in machines]
    assert len(said) == 1 and "a forked process computes on one thread" in str(said[0].message), said
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected)) < 1e-4
    try:
        pi.ScoreMachine(sys.argv[1], threads=2)
    except pi.PatchIndexError as error:
        assert "threads: must be a whole number from 1 to 1 in a forked process" in str(error), error
        os._exit(0)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes_on_one_thread(index):
    # Python 3.12 and later warn of every fork of a process with threads.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORK, index.path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_kernels_that_are_not_compiled_are_refused():
    code = "import patchindex.kernels.scan"
    environment = {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "NUMBA_DISABLE_JIT: is set: the kernels would run as plain Python" in done.stderr


def test_results_have_no_gradient(images):
    x = torch.zeros(1, 3, *images.shape[1:3], requires_grad=True)
    for name in ("IS", "ELS", "wiener"):
        m = pi.denoiser(name, images, **({"locality": 3} if name == "ELS" else {}))
        assert not m.posterior_mean(x, 0.5).mean.requires_grad
        assert not m.score(x, 0.5).requires_grad
