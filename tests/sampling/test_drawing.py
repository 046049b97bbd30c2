"""`sample`: the same images however they are batched, and the record of each step."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError, PatchIndexError
from patchindex.networks import wrap
from patchindex.sampling import SAMPLERS, Sampler, draw_noise

# 19 steps of float32, each dividing a rounding by beta, which is small at the end; images are 2 wide.
TRAJECTORY = 1e-3


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(12, 10, classes=(2, 5, 8))


@pytest.fixture(scope="module")
def machine(images):
    return pi.ScoreMachine(*images, locality=[3, 3, 5, 7])


@pytest.mark.parametrize("name", ["IS", "LS"])
def test_one_training_image_is_what_is_drawn(images, name):
    r = pi.sample(pi.ScoreMachine(images[0][:1], machine=name, locality=5), n=2)
    expected = torch.from_numpy(images[0][:1].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    torch.testing.assert_close(r.images, expected.expand(2, -1, -1, -1), rtol=0, atol=TRAJECTORY)


def test_sampling_by_hand(images):
    """The whole trajectory in float64 from brute-force posterior means."""
    pixels, steps = images[0][:5], 6
    m = pi.ScoreMachine(pixels, machine="bbELS", locality=3)
    r = pi.sample(m, n=1, steps=steps, seed=1)
    x = r.x_T[0].double().numpy()
    for i in range(steps - 1, 0, -1):
        beta, following = brute.beta_of(i / steps), brute.beta_of((i - 1) / steps)
        mean = brute.posterior_mean(pixels, x, beta, "bbELS", 3).mean
        eps = (x - (1 - beta) ** 0.5 * mean) / beta**0.5
        x = (1 - following) ** 0.5 * mean + following**0.5 * eps
    np.testing.assert_allclose(r.images[0], x, rtol=0, atol=TRAJECTORY)


@pytest.fixture(scope="module")
def five(machine):
    return pi.sample(machine, n=5, steps=5, seed=4)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equal_seeds_give_equal_images_in_any_batches(machine, five, batch_size):
    r = pi.sample(machine, n=5, steps=5, seed=4, batch_size=batch_size)
    assert torch.equal(r.x_T, five.x_T)
    torch.testing.assert_close(r.images, five.images, rtol=0, atol=TRAJECTORY)


def test_other_seeds_give_other_images(machine, five):
    other = pi.sample(machine, n=5, steps=5, seed=5)
    assert ((other.images - five.images).abs().amax((1, 2, 3)) > 0.1).all()


def test_one_or_as_many_as_in_the_noise(machine):
    assert pi.sample(machine, steps=2).images.shape == (1, 1, 10, 10)
    noise = draw_noise(0, 3, machine.shape)
    r = pi.sample(machine, x_T=noise, steps=3)
    assert r.images.shape == (3, 1, 10, 10)
    assert torch.equal(r.x_T, noise)
    as_array = pi.sample(machine, n=3, x_T=noise.numpy(), steps=3)
    torch.testing.assert_close(as_array.images, r.images, rtol=0, atol=TRAJECTORY)
    # The seed's own noise, given.
    torch.testing.assert_close(
        pi.sample(machine, n=3, seed=0, steps=3).images, r.images, rtol=0, atol=TRAJECTORY
    )
    assert r.settings["x_T"] == "given"
    assert torch.equal(noise, draw_noise(0, 3, machine.shape))  # left alone


def test_images_are_within_the_range_of_the_training_images(machine):
    r = pi.sample(machine, n=4)
    assert r.images.dtype == torch.float32
    assert r.images.abs().max() <= 1 + TRAJECTORY


def test_the_callback_gets_every_step_of_every_batch(machine):
    steps = []
    r = pi.sample(machine, n=3, steps=4, batch_size=2, callback=steps.append)
    assert [(step["first"], step["i"]) for step in steps] == [(0, 3), (0, 2), (0, 1), (2, 3), (2, 2), (2, 1)]
    for step in steps:
        n = 2 if step["first"] == 0 else 1
        assert set(step) == {"i", "t", "t_next", "x", "score", "estimate", "first"}
        assert step["t"] == step["i"] / 4
        assert step["x"].shape == step["score"].shape == step["estimate"].mean.shape == (n, 1, 10, 10)
    assert torch.equal(torch.cat([steps[2]["x"], steps[5]["x"]]), r.images)
    # The estimate is the one that the score was made of.
    before = steps[0]["x"]
    torch.testing.assert_close(
        steps[1]["score"],
        machine.score_of(steps[1]["estimate"].mean, before, steps[1]["t"]),
        rtol=0,
        atol=1e-6,
    )


def test_what_the_result_says(machine):
    r = pi.sample(machine, n=3, steps=4, batch_size=2, seed=7)
    assert len(r.steps) == 6
    assert [step["t"] for step in r.steps] == [3 / 4, 2 / 4, 1 / 4] * 2
    assert [step["k"] for step in r.steps] == [7, 5, 3] * 2
    assert all(step["captured_mass"] == 1 and step["codes_scanned"] == 0 for step in r.steps)
    # 12 images; windows inside of 10 x 10.
    assert [step["patches_evaluated"] for step in r.steps[:3]] == [
        2 * 100 * 12 * (11 - k) ** 2 for k in (7, 5, 3)
    ]
    expected = {"n": 3, "steps": 4, "sampler": "ddim", "seed": 7, "batch_size": 2, "label": None}
    assert (expected | {"machine": "ELS"}).items() <= r.settings.items()


@pytest.mark.parametrize("sampler", ["ddpm", "euler", "heun", "dpmpp"])
def test_other_samplers_give_equal_images_in_any_batches(machine, sampler):
    options = {"sampler": sampler, "spacing": "karras", "steps": 6, "seed": 2}
    whole = pi.sample(machine, n=3, **options)
    for batch_size in (1, 2):
        r = pi.sample(machine, n=3, batch_size=batch_size, **options)
        torch.testing.assert_close(r.images, whole.images, rtol=0, atol=TRAJECTORY)
    part = pi.sample(machine, x_T=whole.x_T[1:], first=1, **options)
    torch.testing.assert_close(part.images, whole.images[1:], rtol=0, atol=TRAJECTORY)
    assert whole.settings["spacing"] == "karras"


def test_ode_samplers_converge_to_one_image_and_ddpm_to_others(machine):
    def images(sampler, steps):
        return pi.sample(machine, n=2, steps=steps, sampler=sampler, spacing="karras").images

    # The score of few images has steep places, where the order of a method does not show.
    limit = images("heun", 160)
    errors = [float((images("euler", steps) - limit).square().mean().sqrt()) for steps in (10, 80)]
    assert errors[1] < errors[0] / 2
    assert float((images("ddpm", 40) - limit).square().mean().sqrt()) > 2 * errors[1]


def test_times_may_be_given(machine):
    r = pi.sample(machine, n=1, steps=[0.9, 0.5, 0.1, 0.0])
    assert [step["t"] for step in r.steps] == [0.9, 0.5, 0.1]
    assert r.settings["steps"] == [0.9, 0.5, 0.1, 0.0]


def test_a_label_per_image(images, machine):
    options = {"steps": 5, "seed": 1, "batch_size": 2}
    r = pi.sample(machine, n=4, label=[2, 2, 5, None], **options)
    for i, label in enumerate((2, 2, 5, None)):
        one = pi.sample(machine, x_T=r.x_T[i : i + 1], label=label, first=i, **options)
        torch.testing.assert_close(one.images, r.images[i : i + 1], rtol=0, atol=TRAJECTORY)
    assert r.settings["label"] == [2, 2, 5, None]
    assert [step["first"] for step in r.steps[::4]] == [0, 2, 3]


def test_progress_of_heun_grows_to_one(machine):
    shares = []
    r = pi.sample(
        machine, n=3, steps=4, batch_size=2, sampler="heun",
        progress=lambda _, done, total: shares.append(done / total),
    )  # fmt: skip
    assert len(r.steps) == 2 * (2 * 3 - 1)
    assert shares == sorted(shares)
    assert 0.8 < shares[-1] <= 1


def test_labels(images, machine):
    pixels, labels = images
    r = pi.sample(machine, n=2, steps=5, label=5)
    subset = pi.ScoreMachine(pixels[labels == 5], locality=machine.locality)
    torch.testing.assert_close(r.images, pi.sample(subset, n=2, steps=5).images, rtol=0, atol=TRAJECTORY)
    own = pi.ScoreMachine(pixels, labels, locality=machine.locality, label=5)
    by_machine = pi.sample(own, n=2, steps=5)
    torch.testing.assert_close(by_machine.images, r.images, rtol=0, atol=TRAJECTORY)
    assert pi.sample(own, n=1, steps=2).settings["label"] == 5


def test_progress_grows_to_one(images):
    shares = []
    m = pi.ScoreMachine(*images, locality=[3, 3, 5, 7], memory=20_000)
    pi.sample(m, n=5, steps=4, batch_size=2, progress=lambda _, done, total: shares.append(done / total))
    assert len(shares) > 9  # 3 batches of 3 steps, and more than one tile in a step
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "topk"])
def test_sampling_from_a_store(images, tmp_path, estimator):
    store = pi.build_index(images[0], tmp_path / "s.zarr", locality=[3, 3, 5, 7])
    options = {"candidates": 10**6, "probes": 10**6} if estimator == "topk" else {}
    r = pi.sample(pi.ScoreMachine(store, estimator=estimator, **options), n=2, steps=5)
    raw = pi.sample(pi.ScoreMachine(images[0], locality=[3, 3, 5, 7]), n=2, steps=5)
    torch.testing.assert_close(r.images, raw.images, rtol=0, atol=TRAJECTORY)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 0}, "n: must be at least 1, got 0"),
        ({"n": 10**9}, "n: 1000000000 images take 745 GiB, and this process may use .*; draw fewer"),
        ({"n": 1.5}, "n: must be a whole number, got 1.5"),
        ({"n": "3"}, "n: must be a whole number, got '3'"),
        ({"n": True}, "n: must be a whole number, got True"),
        ({"steps": 2.5}, "steps: must be a whole number, got 2.5"),
        ({"seed": None}, "seed: must be a whole number, got None"),
        ({"seed": 0.5}, "seed: must be a whole number, got 0.5"),
        ({"batch_size": 2.5}, "batch_size: must be a whole number, got 2.5"),
        ({"first": "a"}, "first: must be a whole number, got 'a'"),
        ({"sampler": []}, r"sampler: unknown sampler \[\]"),
        ({"callback": 3}, "callback: must be a function of a step, got int"),
        ({"start": "abc"}, "start: must be an ImageStart, got str"),
        ({"known": (0, 1)}, "known: must be a KnownPixels, got tuple"),
        ({"steps": 1}, "steps: must be at least 2, got 1"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"sampler": "euler2"}, "unknown sampler 'euler2'; use ddim, ddpm, euler, heun, dpmpp"),
        ({"spacing": "even"}, "spacing: unknown spacing 'even'; use uniform, karras, log-snr"),
        ({"steps": [0.5, 0.9]}, "steps: times must descend"),
        ({"steps": [1.0, 0.0]}, r"steps: times must lie in \[0, 1\), got 1.0"),
        ({"steps": [0.5]}, "steps: must be a whole number or a list of at least two times"),
        ({"label": [2, 5], "n": 3}, "label: must be a label, or one for each of 3 images"),
        ({"n": 10**4, "steps": 20_000, "trajectory": True}, "n: 10000 images take 37. GiB"),
        ({"label": 3}, "label: no image has label 3"),
        (
            {"x_T": torch.zeros(1, 10, 10)},
            r"x_T: must be a tensor of shape \(B, 1, 10, 10\), got \(1, 10, 10\)",
        ),
        ({"x_T": torch.zeros(0, 1, 10, 10)}, "x_T: must be a tensor of shape"),
        ({"x_T": torch.zeros(2, 1, 10, 10), "n": 3}, "n: is 3, but x_T has 2 images; leave n out"),
        ({"x_T": torch.full((2, 1, 10, 10), torch.nan)}, "x_T: must be finite floats"),
        ({"x_T": torch.zeros(2, 1, 10, 10, dtype=torch.int32)}, "x_T: must be finite floats"),
        ({"x_T": torch.zeros(2, 1, 10, 10, dtype=torch.complex64)}, "x_T: must be finite floats"),
        ({"x_T": torch.zeros(2, 1, 10, 10).to_sparse()}, "x_T: must be finite floats in a dense tensor"),
        ({"x_T": np.zeros((2, 1, 10, 10), int)}, "x_T: is no array of floats: int64"),
        ({"x_T": [[1.0], [1.0, 2.0]]}, "x_T: is no array of floats: list"),
        ({"x_T": "noise"}, "x_T: is no array of floats: str"),
    ],
)
def test_settings_that_make_no_sense_are_refused(machine, settings, words):
    with pytest.raises(InputError, match=words):
        pi.sample(machine, **settings)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">f4"),
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.asfortranarray(x.astype(np.longdouble)),
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x).double().requires_grad_(),
    ],
    ids=["big-endian", "negative-stride", "long-double", "list", "tensor"],
)
def test_noise_of_any_layout_is_accepted(machine, change):
    noise = draw_noise(0, 2, (1, 10, 10)).numpy()
    expected = pi.sample(machine, steps=3, x_T=noise).images
    torch.testing.assert_close(pi.sample(machine, steps=3, x_T=change(noise)).images, expected)


def test_an_image_that_is_not_finite_is_refused(machine, monkeypatch):
    broken = Sampler(lambda model, x, *_: model(x, 0.5) * torch.inf)
    monkeypatch.setitem(SAMPLERS, "broken", broken)
    with pytest.raises(PatchIndexError, match="an image is not finite; check the sampler"):
        pi.sample(machine, steps=3, sampler="broken")


@pytest.mark.parametrize(("explodes", "words"), [(0.625, "step 4, t = 0.5"), (0.125, "step 8, t = 0")])
def test_a_trajectory_that_diverges_names_the_denoiser_and_the_step(explodes, words):
    def diverges(x, t):
        return torch.where(t[:, None, None, None] <= explodes, 1e6, 0.0) * torch.ones_like(x)

    network = wrap(diverges, (1, 8, 8), predicts="x0", name="unstable")
    with pytest.raises(PatchIndexError, match=f"network unstable: .* diverged: at {words}") as refused:
        pi.sample(network, steps=8)
    assert refused.value.exit_code == 1


def test_a_trajectory_that_diverges_by_long_steps_gets_more_steps(machine):
    words = "diverged: at step .*; use more steps, or sampler='ddim'"
    with pytest.raises(PatchIndexError, match=words):
        pi.sample(machine, steps=3, sampler="heun", spacing="karras")
