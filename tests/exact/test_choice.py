"""Engines by name, and scans of parts of the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import brute
import fake_gpu
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.devices import ACCELERATORS
from patchindex.errors import DeviceError, InputError, PatchIndexWarning
from patchindex.exact import ScoreRequest, choice, scan, scan_parts
from patchindex.exact.choice import fastest
from patchindex.exact.fused_device import Triton
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

ENGINES = ("cpu", "offsets")


@pytest.fixture(scope="module")
def request_of(real_images):
    images, labels = real_images(20, 10, classes=(2, 5, 8))
    x = torch.from_numpy(brute.noisy(real_images(2, 10, skip=500)[0], 0.4))

    def make(name="ELS", **settings):
        geometry = Geometry.of(k=3, size=(10, 10), **brute.settings_of(name))
        return ScoreRequest(TrainingImages(images, labels), geometry, x, brute.beta_of(0.4), **settings)

    return make


def assert_same(a, b):
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0, atol=2e-5)
    torch.testing.assert_close(a.log_weight(), b.log_weight(), rtol=1e-6, atol=1e-3)
    assert torch.equal(a.count, b.count)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", brute.MACHINES)
def test_every_engine_gives_the_same_posterior_mean(request_of, name, engine):
    assert_same(scan(request_of(name, engine=engine)), scan(request_of(name, dtype=torch.float64)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", brute.MACHINES)
def test_parts_are_scans_of_their_images_and_merge_into_the_whole(request_of, name, engine):
    request = request_of(name, engine=engine, label=5)
    lo, hi = request.image_range
    n = hi - lo
    assert n > 4
    shares = []
    parts = scan_parts(
        replace(request, progress=lambda _, done, total: shares.append(done / total)), [0, 1, 4, n]
    )
    assert parts.mean().shape == (3, 2, 10, 10, 1)
    assert_same(parts.reduce(0), scan(request))
    middle = request.training.select(np.arange(lo + 1, lo + 4))
    assert_same(parts[1], scan(replace(request, training=middle, label=None)))
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_of_some_pixels(request_of, engine):
    request = request_of(engine=engine)
    mask = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.2
    parts = scan_parts(replace(request, pixels=mask), [2, 5, 20])
    assert_same(parts, scan_parts(request, [2, 5, 20])[:, mask])


@pytest.mark.parametrize("bounds", [[], [0], [0, 0], [3, 2], [-1, 4], [0, 21]])
def test_bounds_outside_the_images_are_refused(request_of, bounds):
    with pytest.raises(InputError, match="must ascend within 0 to 20"):
        scan_parts(request_of(), bounds)


def test_an_engine_is_an_option_of_exact(real_images):
    images = real_images(9, 10)[0]
    x = torch.from_numpy(brute.noisy(images[:1], 0.4))
    usual = pi.ScoreMachine(images, estimator="exact", locality=[3])
    named = pi.ScoreMachine(images, estimator="exact", engine="offsets", locality=[3])
    assert named.settings["options"] == named.exact().settings["options"] == {"engine": "offsets"}
    a, b = (m.posterior_mean(x, 0.4).mean for m in (usual, named))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    assert not torch.equal(a, b)  # they round differently, so another engine did run


def test_an_unknown_engine_is_refused_before_any_work(real_images):
    with pytest.raises(InputError, match="unknown engine 'gpu'; use one of cpu, "):
        pi.ScoreMachine(real_images(9, 10)[0], estimator="exact", engine="gpu")


def test_the_cpu_engine_is_refused_in_float64(request_of):
    with pytest.raises(InputError, match="'cpu' computes in float32 only; leave it out"):
        scan(request_of(engine="cpu", dtype=torch.float64))


CUDA = torch.device("cuda:0")


@dataclass(frozen=True)
class Installed(Triton):
    """A Triton of some version, which works unless there is an error."""

    number: tuple[int, int] | None = (3, 9)
    error: str | None = None

    def version(self):
        return self.number

    def driver_error(self):
        return self.error


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(capability)`: there is then a GPU of this compute capability, and Triton does not interpret."""
    choice._warn_of_slow_scans.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def found(capability):
        monkeypatch.setitem(ACCELERATORS, "cuda", fake_gpu.Fake([1 << 30], capability=capability))

    yield found
    choice._warn_of_slow_scans.cache_clear()


def test_a_gpu_takes_the_fused_kernel_in_float32(gpu):
    gpu((9, 0))
    assert fastest(CUDA, torch.float32, Installed()) == "fused"
    assert fastest(CUDA, torch.float64, Installed()) == "offsets"


def test_the_cpu_never_takes_the_fused_kernel_by_itself():
    assert fastest(torch.device("cpu"), torch.float32) == "cpu"
    assert fastest(torch.device("cpu"), torch.float64) == "offsets"


def test_an_old_gpu_takes_offsets_and_one_warning_says_why(gpu, recwarn):
    gpu((7, 5))
    with pytest.warns(
        PatchIndexWarning,
        match=r"device cuda:0: exact scans take the slower engine 'offsets', because the engine 'fused' "
        r"needs a GPU of compute capability 8.0, this one has 7.5; give engine='offsets' to the estimator",
    ):
        assert fastest(CUDA, torch.float32, Installed()) == "offsets"
    assert fastest(CUDA, torch.float32, Installed()) == "offsets"
    assert not recwarn.list


def test_without_triton_a_gpu_takes_offsets_and_fused_is_refused(gpu):
    gpu((9, 0))
    none = Installed(None)
    with pytest.warns(PatchIndexWarning, match="because the engine 'fused' needs Triton, which is"):
        assert fastest(CUDA, torch.float32, none) == "offsets"
    with pytest.raises(
        DeviceError, match="needs Triton, which is not installed; pip install triton; or leave"
    ):
        choice.check_engine("fused", CUDA, triton=none)


def test_an_old_triton_is_refused(gpu):
    gpu((9, 0))
    with pytest.raises(
        DeviceError, match=r"needs Triton 3.2, this is 3.1; install a torch that comes with it"
    ):
        choice.check_engine("fused", CUDA, triton=Installed((3, 1)))


def test_the_version_of_triton_is_read():
    triton = pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")
    assert triton.__version__.startswith("{}.{}".format(*Triton().version()))


def test_a_triton_that_cannot_use_the_gpu_says_why(gpu):
    gpu((9, 0))
    broken = Installed(error="Failed to find C compiler.")
    with pytest.warns(
        PatchIndexWarning, match="needs Triton, which does not work here: Failed to find C comp"
    ):
        assert fastest(CUDA, torch.float32, broken) == "offsets"


def test_fused_on_a_cpu_is_refused_before_any_work(real_images, monkeypatch):
    pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        DeviceError, match="device cpu: the engine 'fused' needs a CUDA device; leave the engine"
    ):
        pi.ScoreMachine(real_images(9, 10)[0], estimator="exact", engine="fused")


def test_engines_of_other_devices_and_types_are_refused():
    with pytest.raises(
        InputError, match="engine: 'cpu' does not run on cuda:0; leave it out, or use 'offsets'"
    ):
        choice.check_engine("cpu", CUDA)
    with pytest.raises(InputError, match="'fused' computes in float32 only"):
        choice.check_engine("fused", CUDA, torch.float64)
