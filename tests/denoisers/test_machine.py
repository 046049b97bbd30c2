"""ScoreMachine: what it takes, what it gives back and what it refuses."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import DeviceError, InputError

FIELDS = ("mean", "stderr", "ess", "captured_mass")


def assert_same(a, b, tolerance=0):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(20, 10, classes=(2, 5, 8))


@pytest.fixture(scope="module")
def colour(real_images):
    return real_images(10, (8, 10), channels=3)[0]


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    return pi.build_index(
        images[0], tmp_path_factory.mktemp("m") / "s.zarr", labels=images[1], locality=[3, 3, 5, 5]
    )


@pytest.fixture
def x(images):
    return torch.from_numpy(brute.noisy(images[0][:4], 0.5))


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([0.2, 0.5, 0.7])])
def test_shapes_and_types(colour, t):
    m = pi.ScoreMachine(colour, locality=[3, 3, 5])
    x = torch.randn(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    e = m.posterior_mean(x, t)
    assert e.mean.shape == (3, 3, 8, 10)
    for name in FIELDS[1:]:
        assert getattr(e, name).shape == (3, 8, 10)
    for name in FIELDS:
        assert getattr(e, name).dtype == torch.float32
    assert type(e.patches_evaluated) is int
    assert type(e.codes_scanned) is int
    assert m.score(x, t).shape == x.shape
    assert m.score(x, t).dtype == torch.float32
    assert_same(m(x, t), m.score(x, t), 1e-3)
    assert m.shape == (3, 8, 10)


def test_other_float_types_are_accepted(images, x):
    m = pi.ScoreMachine(images[0], locality=3)
    for dtype in (torch.float64, torch.float16):
        given = x.to(dtype)
        assert_same(m.posterior_mean(given, 0.5).mean, m.posterior_mean(given.float(), 0.5).mean)
        assert m(given, 0.5).dtype == torch.float32


@pytest.mark.parametrize("estimator", ["exact", "topk", "auto"])
def test_mixed_times_are_separate_calls(store, x, estimator):
    m = pi.ScoreMachine(store, estimator=estimator)
    t = torch.tensor([0.6, 0.2, 0.6, 0.3], dtype=torch.float64)
    together = m.posterior_mean(x, t)
    alone = [m.posterior_mean(x[i : i + 1], float(t[i])) for i in range(4)]
    assert {m.scale_at(float(time)) for time in t} == {3, 5}
    for name in FIELDS:
        expected = torch.cat([getattr(e, name) for e in alone])
        # float32 sums of another order.
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert together.patches_evaluated == sum(e.patches_evaluated for e in alone)
    assert together.codes_scanned == sum(e.codes_scanned for e in alone)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_score_is_what_the_posterior_mean_says(images, x, t):
    m = pi.ScoreMachine(images[0], locality=5, dtype=torch.float64)
    beta = brute.beta_of(t)
    mean = m.posterior_mean(x, t).mean.double()
    expected = ((1 - beta) ** 0.5 * mean - x) / beta
    torch.testing.assert_close(m.score(x, t).double(), expected, rtol=1e-6, atol=1e-6)  # rounded to float32


def test_score_is_the_gradient_of_the_log_density(images):
    """For IS the machine is the score of a mixture of Gaussians, whose density is written down here."""
    v = torch.from_numpy(images[0].transpose(0, 3, 1, 2) / 127.5 - 1)
    beta = brute.beta_of(0.7)
    x = torch.from_numpy(brute.noisy(images[0][:1], 0.7)).double().requires_grad_()
    logits = -((x - (1 - beta) ** 0.5 * v) ** 2).sum((1, 2, 3)) / (2 * beta)
    (gradient,) = torch.autograd.grad(logits.logsumexp(0), x)
    found = pi.ScoreMachine(images[0], machine="IS", dtype=torch.float64).score(x.detach(), 0.7)
    # x is rounded to float32 at the entrance, after which logits of 1e2 differ by 1e-5.
    torch.testing.assert_close(found.double(), gradient, rtol=0, atol=1e-4)


def test_k_replaces_the_schedule(images, x):
    m = pi.ScoreMachine(images[0], locality=[3, 3, 5, 7])
    assert [m.scale_at(t) for t in (0.1, 0.5, 0.75)] == [3, 5, 7]
    assert m.scale_at(0.1, 9) == 9
    by_k = m.posterior_mean(x, 0.1, k=7)
    assert_same(by_k.mean, pi.ScoreMachine(images[0], locality=7).posterior_mean(x, 0.1).mean)
    assert not torch.equal(by_k.mean, m.posterior_mean(x, 0.1).mean)
    assert_same(m.score(x, 0.1, k=7), pi.ScoreMachine(images[0], locality=7).score(x, 0.1), 1e-3)


def test_is_needs_neither_k_nor_schedule(images, x):
    m = pi.ScoreMachine(images[0], machine="IS")
    assert m.scale_at(0.5) is None
    assert torch.isfinite(m(x, 0.5)).all()


def test_the_label_of_the_machine_is_the_default(images, x):
    pixels, labels = images
    m = pi.ScoreMachine(pixels, labels, locality=5, label=5)
    of_five = pi.ScoreMachine(pixels[labels == 5], locality=5).posterior_mean(x, 0.5).mean
    of_two = pi.ScoreMachine(pixels[labels == 2], locality=5).posterior_mean(x, 0.5).mean
    torch.testing.assert_close(m.posterior_mean(x, 0.5).mean, of_five, rtol=0, atol=1e-5)
    torch.testing.assert_close(m.posterior_mean(x, 0.5, label=2).mean, of_two, rtol=0, atol=1e-5)
    assert (of_five - of_two).abs().max() > 0.01
    assert_same(m.score(x, 0.5, label=2), pi.ScoreMachine(pixels, labels, locality=5, label=2)(x, 0.5), 1e-3)


def test_label_zero_is_a_label(real_images, x):
    pixels, labels = real_images(20, 10, classes=(0, 1))
    m = pi.ScoreMachine(pixels, labels, locality=3)
    assert m.posterior_mean(x, 0.5, label=0).patches_evaluated == 4 * 100 * (labels == 0).sum() * 64


def test_images_of_all_kinds_are_taken(images, x, tmp_path):
    pixels, labels = images
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    expected = pi.ScoreMachine(pixels, labels, locality=5).posterior_mean(x, 0.5, label=5).mean
    for source in (tmp_path / "a.npz", str(tmp_path / "a.npz"), pi.open_images(tmp_path / "a.npz")):
        found = pi.ScoreMachine(source, locality=5).posterior_mean(x, 0.5, label=5).mean
        assert_same(found, expected)
    unit = pi.ScoreMachine(pixels.astype(np.float32) / 255, labels, locality=5)
    assert_same(unit.posterior_mean(x, 0.5, label=5).mean, expected)


def test_a_store_is_taken_opened_or_by_its_path(store, x):
    expected = pi.ScoreMachine(store).posterior_mean(x, 0.5).mean
    for source in (store.path, str(store.path)):
        m = pi.ScoreMachine(source)
        assert_same(m.posterior_mean(x, 0.5).mean, expected)
    assert (m.machine, m.train_windows, m.estimator) == ("ELS", "valid", "auto")
    assert m.locality.scales == (3, 5, 5)


def test_a_callable_is_a_noise_schedule(images, x):
    constant = pi.ScoreMachine(images[0], locality=3, noise=lambda t: brute.beta_of(0.5))
    expected = pi.ScoreMachine(images[0], locality=3).posterior_mean(x, 0.5).mean
    assert_same(constant.posterior_mean(x, 0.123).mean, expected)


def test_the_scale_of_a_preset_depends_on_the_noise_and_not_on_the_time(real_images):
    images = np.pad(real_images(3, 28)[0], ((0, 0), (2, 2), (2, 2), (0, 0)))
    # At t = 1/2 and 1/3, beta is .49 and .25 in the cosine schedule, and .92 and .68 in DDPM's schedule.
    for noise, scales in (("cosine", [7, 5]), ("linear", [15, 9])):
        machine = pi.ScoreMachine(images, locality="cifar10-resnet-circular", noise=noise)
        assert [machine.scale_at(t) for t in (1 / 2, 1 / 3)] == scales
        assert pi.sample(machine, 1, 3).steps[1]["k"] == scales[1]


def test_the_entries_of_a_list_belong_to_times_of_the_noise_schedule_of_the_machine(images):
    for noise in ("cosine", "linear", lambda t: t):
        machine = pi.ScoreMachine(images[0], locality=[3, 3, 5, 7], noise=noise)
        assert [machine.scale_at(t) for t in (0.25, 0.5, 0.75)] == [3, 5, 7]


def test_a_schedule_for_images_of_another_size_warns_once_until_it_is_resized(real_images):
    images = real_images(3, 28)[0]
    with pytest.warns(pi.PatchIndexWarning, match="calibrated on images of 32 x 32, not 28 x 28") as caught:
        pi.ScoreMachine(images, locality="mnist-resnet-zeros").exact()
    assert [warning.filename for warning in caught] == [__file__]
    machine = pi.ScoreMachine(images, locality=pi.LocalitySchedule.of("mnist-resnet-zeros").resized(28))
    assert machine.scale_at(0.95) == 13
    pi.ScoreMachine(images, machine="IS", locality="mnist-resnet-zeros")  # the ideal score has no scales


@pytest.mark.parametrize("estimator", ["exact", "topk"])
def test_equal_seeds_and_unequal_ones_give_equal_means(store, x, estimator):
    """Neither of these estimators draws anything."""
    m = pi.ScoreMachine(store, estimator=estimator)
    a, b = (m.posterior_mean(x, 0.5, seed=seed).mean for seed in (0, 1))
    assert_same(a, b)


def test_settings_are_plain_data(store):
    import json

    settings = pi.ScoreMachine(store, estimator="topk", candidates=7).settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings["options"] == {"candidates": 7}
    assert settings["machine"] == "ELS"
    assert [k for _, k in settings["locality"]["pairs"]] == [3, 5, 5]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(1, 10, 10), r"x: must be a tensor of shape \(B, 1, 10, 10\), got \(1, 10, 10\)"),
        (torch.zeros(1, 3, 10, 10), "x: must be a tensor of shape"),
        (torch.zeros(1, 1, 10, 12), "x: must be a tensor of shape"),
        (torch.zeros(0, 1, 10, 10), "x: must be a tensor of shape"),
        (np.zeros((1, 1, 10, 10), np.float32), "x: must be a tensor of shape .* got ndarray"),
        (torch.zeros(1, 1, 10, 10, dtype=torch.int64), "x: must be finite floats"),
        (torch.full((1, 1, 10, 10), torch.nan), "x: must be finite floats"),
        (torch.full((1, 1, 10, 10), torch.inf), "x: must be finite floats"),
        (torch.full((1, 1, 10, 10), 101.0), r"x: values must lie in \[-100, 100\], got 101; scale it as x_t"),
        (torch.full((1, 1, 10, 10), -1e300, dtype=torch.float64), "x: values must lie in .* got 1e\\+300"),
    ],
)
def test_a_bad_x_is_refused(images, bad, words):
    m = pi.ScoreMachine(images[0], locality=3)
    with pytest.raises(InputError, match=words):
        m.posterior_mean(bad, 0.5)
    with pytest.raises(InputError, match=words):
        m.score(bad, 0.5)


@pytest.mark.parametrize(
    ("t", "words"),
    [
        *((t, r"must lie in \(0, 1\)") for t in (0, 1, -0.1, 1.5, float("nan"))),
        (torch.tensor([0.5, 0.5, 0.5, 1.0]), r"must lie in \(0, 1\), got 1.0"),
        (torch.full((3,), 0.5), "there are 3 times for 4 images"),
        (10**400, "is not a time"),
        (1e-12, "beta = 2.4e-24 at t = 1.0e-12 is below 1e-20; use a larger t"),
    ],
)
def test_a_bad_time_is_refused(images, x, t, words):
    with pytest.raises(InputError, match=f"t: {words}"):
        pi.ScoreMachine(images[0], locality=3).posterior_mean(x, t)


@pytest.mark.parametrize("t", [0.05, 0.9])
@pytest.mark.parametrize("machine", ["IS", "LS", "ELS", "bbELS"])
def test_the_largest_x_agrees_with_float64(images, x, machine, t):
    x *= 99.9 / x.abs().max()
    one, two = (
        pi.ScoreMachine(images[0], machine=machine, dtype=dtype).posterior_mean(x, t, k=5)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(one.mean, two.mean, rtol=0, atol=2e-4)


def test_a_bad_label_is_refused(images, x):
    pixels, labels = images
    with pytest.raises(InputError, match="label: no image has label 3; use one of 2, 5, 8"):
        pi.ScoreMachine(pixels, labels, locality=3, label=3)
    with pytest.raises(InputError, match="label: no image has label 3"):
        pi.ScoreMachine(pixels, labels, locality=3).posterior_mean(x, 0.5, label=3)
    with pytest.raises(InputError, match="label: the images have no labels"):
        pi.ScoreMachine(pixels, locality=3).posterior_mean(x, 0.5, label=3)


def test_a_bad_scale_is_refused(images, x, store):
    m = pi.ScoreMachine(images[0])
    with pytest.raises(InputError, match="locality: there is none; give a locality schedule, or k"):
        m.posterior_mean(x, 0.5)
    with pytest.raises(InputError, match="k must be odd"):
        m.posterior_mean(x, 0.5, k=4)
    with pytest.raises(InputError, match="k = 11 is larger than the images"):
        m.posterior_mean(x, 0.5, k=11)
    with pytest.raises(InputError, match="k = 11 is larger than the images"):
        pi.ScoreMachine(images[0], locality=[3, 3, 11])  # refused at once, not at the last step
    with pytest.raises(InputError, match="locality scale 7: the store has no index for it, only for 3, 5"):
        pi.ScoreMachine(store).posterior_mean(x, 0.5, k=7)
    with pytest.raises(InputError, match="locality scale 7: the store has no index"):
        pi.ScoreMachine(store, locality=[3, 3, 7])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"machine": "CNN"}, "unknown machine 'CNN'"),
        ({"machine": "LS", "train_windows": "wrapped"}, "train_windows"),
        ({"noise": "sine"}, "unknown noise schedule 'sine'"),
        ({"locality": "none"}, "unknown preset 'none'"),
        ({"memory": "much"}, "not an amount of memory"),
        ({"dtype": torch.float16}, "dtype: torch.float16 is neither torch.float32 nor torch.float64"),
        ({"dtype": "float64"}, "dtype: 'float64' is neither torch.float32 nor torch.float64"),
        ({"device": 1.5}, "device: unknown device 1.5; use cpu, cuda, mps or xpu"),
        ({"labels": [1, 2, 3]}, "3 labels for 20 images"),
        *(({"device": device}, "use cpu, cuda, mps or xpu") for device in ("tpu", "hpu", "cpu?")),
    ],
)
def test_bad_settings_are_refused(images, settings, words):
    with pytest.raises(InputError, match=words):
        pi.ScoreMachine(images[0], **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"machine": "bbELS"}, "machine: is fixed in the store as 'ELS'"),
        ({"train_windows": "wrapped"}, "train_windows: is fixed in the store as 'valid'"),
        ({"labels": [0] * 20}, "labels: is fixed in the store"),
        ({"labels": np.zeros(20, int)}, "labels: is fixed in the store"),
    ],
)
def test_what_the_store_fixes_is_fixed(store, settings, words):
    with pytest.raises(InputError, match=words):
        pi.ScoreMachine(store, **settings)
    assert pi.ScoreMachine(store, machine="ELS", train_windows="valid").machine == "ELS"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_a_device_is_refused(images, store, tmp_path, device):
    for call in (
        lambda: pi.ScoreMachine(images[0], locality=3, device=device),
        lambda: pi.ScoreMachine(store, device=device),
        lambda: pi.open_index(store.path, device=device),
        lambda: pi.build_index(images[0], tmp_path / "s.zarr", scales=[3], device=device),
    ):
        with pytest.raises(
            DeviceError, match=f"device {device}: torch finds no CUDA device; use cpu"
        ) as caught:
            call()
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("machine", ["IS", "LS", "ELS", "bbELS"])
def test_exact_on_cuda_agrees_with_the_cpu(images, x, machine):
    a = pi.ScoreMachine(images[0], machine=machine).posterior_mean(x, 0.5, k=5)
    b = pi.ScoreMachine(images[0], machine=machine, device="cuda").posterior_mean(x, 0.5, k=5)
    assert b.mean.device.type == "cuda"
    torch.testing.assert_close(b.mean.cpu(), a.mean, rtol=0, atol=1e-4)  # float32 sums in another order
