"""Predictions and time variables of networks, on Gaussian images whose posterior mean is known."""

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError, PatchIndexError
from patchindex.networks import NoiseTable, wrap
from patchindex.schedules import cosine

SHAPE = (1, 4, 4)
MEAN, VARIANCE = 0.3, 0.2  # of each pixel
TABLE = NoiseTable([cosine((i + 1) / 50) for i in range(50)])


def exact_mean(x, beta):
    """Return E[x_0 | x] of independent Gaussian pixels, in float64."""
    a = (1 - beta) ** 0.5
    return MEAN + a * VARIANCE / (a * a * VARIANCE + beta) * (x.double() - a * MEAN)


def gaussian(predicts, time):
    """Return a network that predicts perfectly, as a function of the variables that it is given."""

    def predict(given, times):
        assert times.shape == (len(given),)
        if time == "sigma":
            beta = float(times[0]) ** 2 / (1 + float(times[0]) ** 2)
            x = given * (1 - beta) ** 0.5
        else:
            beta = TABLE.betas[int(times[0])] if time == "index" else cosine(float(times[0]))
            x = given
        a = (1 - beta) ** 0.5
        mean = exact_mean(x, beta)
        eps = (x - a * mean) / beta**0.5
        if predicts == "score":
            # The score of the density of what the network is given.
            if time == "sigma":
                return -(given - MEAN) / (VARIANCE + beta / (1 - beta))
            return -(given - a * MEAN) / (a * a * VARIANCE + beta)
        return {"x0": mean, "epsilon": eps, "v": a * eps - beta**0.5 * mean}[predicts].float()

    return predict


@pytest.mark.parametrize("predicts", ["epsilon", "x0", "v", "score"])
@pytest.mark.parametrize("time", ["t", "sigma", "index"])
def test_all_predictions_give_the_same_posterior_mean(predicts, time):
    schedule = TABLE if time == "index" else "cosine"
    network = wrap(gaussian(predicts, time), SHAPE, predicts=predicts, time=time, schedule=schedule)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 0.92])
    expected = torch.stack([exact_mean(x[i], network.noise(float(t[i]))) for i in range(3)])
    # float32 predictions are divided by a, .13 at t = .92.
    torch.testing.assert_close(network.posterior_mean(x, t).mean.double(), expected, atol=1e-5, rtol=0)


def test_a_network_is_sampled_like_any_denoiser():
    network = wrap(gaussian("v", "t"), SHAPE, predicts="v")
    drawn = pi.sample(network, n=64, steps=50)
    # DDIM maps Gaussian noise to Gaussian images; 1024 pixels, so two digits.
    assert float(drawn.images.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(drawn.images.var()) == pytest.approx(VARIANCE, abs=0.04)
    estimate = network.posterior_mean(torch.zeros(1, *SHAPE), 0.5)
    for unknown in (estimate.stderr, estimate.ess, estimate.captured_mass):
        assert bool(unknown.isnan().all())


def test_a_network_with_labels_gets_them():
    network = wrap(
        lambda x, t, label: x * 0 + label[:, None, None, None] / 10, SHAPE, predicts="x0", labels=[3, 7]
    )
    x = torch.zeros(2, *SHAPE)
    assert float(network.posterior_mean(x, 0.5, label=7).mean.mean()) == pytest.approx(0.7)
    with pytest.raises(InputError, match="no label 5; use one of 3, 7"):
        network.posterior_mean(x, 0.5, label=5)
    with pytest.raises(InputError, match="was trained with labels"):
        network.posterior_mean(x, 0.5)
    with pytest.raises(InputError, match="without labels"):
        wrap(gaussian("x0", "t"), SHAPE, label=1)


def test_a_table_of_variances_is_a_noise_schedule():
    noise = NoiseTable(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # of DDPM
    assert noise(0) == 0
    assert noise(0.5) == noise.betas[499] == pytest.approx(0.92, abs=0.01)
    assert [noise.index(noise.betas[i]) for i in (0, 499, 999)] == [0, 499, 999]
    assert noise.__name__ == "table of 1000 variances from 0.0001 to 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predicts": "noise"}, "predicts: unknown prediction 'noise'; use epsilon, x0, v, score"),
        ({"time": "step"}, "time: unknown time variable 'step'"),
        ({"time": "index"}, "schedule: the time variable 'index' needs a table"),
        ({"schedule": [0.5, 0.4]}, "schedule: must be noise variances in (0, 1], ascending"),
        ({"schedule": [0.5, float("nan")]}, "schedule: must be noise variances"),
        ({"schedule": "parabola"}, "unknown noise schedule 'parabola'"),
        ({"predicts": ["x0"]}, "predicts: unknown prediction ['x0']"),
        ({"labels": []}, "labels: are none"),
        ({"shape": (4, 4)}, "shape: must be (channels, height, width), got (4, 4)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError) as error:
        wrap(gaussian("x0", "t"), **{"shape": SHAPE, **options})
    assert message in str(error.value)


def test_wrong_predictions_are_refused():
    x = torch.zeros(1, *SHAPE)
    with pytest.raises(InputError, match=r"returned \(1, 1, 4, 3\), expected"):
        wrap(lambda x, t: x[..., :3], SHAPE).posterior_mean(x, 0.5)
    with pytest.raises(PatchIndexError, match=r"posterior mean at t = .* is not finite"):
        wrap(lambda x, t: x / 0, SHAPE).posterior_mean(x, 0.5)
