"""Denoisers inside the schedulers of diffusers and the samplers of k-diffusion."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.sampling import as_unet, draw_noise
from patchindex.schedules import time_of

STEPS = 10  # a divisor of 1000: diffusers takes steps of 1000 // STEPS


@pytest.fixture(scope="module")
def machine(real_images):
    return pi.ScoreMachine(*real_images(20, 10, classes=(2, 5)), machine="LS", locality=7, noise="flow")


@pytest.fixture(scope="module")
def noise():
    return draw_noise(0, 3, (1, 10, 10))


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def run(scheduler, unet, x):
    """Return the images of the sampling loop of the documentation of diffusers."""
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(scaled, t).sample, t, x, return_dict=False)[0]
    return x


def linear_machine(machine):
    return pi.ScoreMachine(machine.training.source, machine="LS", locality=7, noise="linear")


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_ddim_of_diffusers_draws_the_images_of_ours(diffusers, machine, noise, predicts):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type=predicts, timestep_spacing="trailing", beta_end=0.02
    )
    theirs = run(scheduler, as_unet(machine, scheduler), noise)
    # Step n of diffusers is the time (n + 1) / 1000; the last step ends at the data.
    times = [min((int(n) + 1) / 1000, 1 - 1e-12) for n in scheduler.timesteps] + [0.0]
    ours = pi.sample(linear_machine(machine), x_T=noise, steps=times).images
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)  # 10 float32 steps of two implementations


def test_a_scheduler_that_starts_from_noise_alone(diffusers, machine, noise):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    assert scheduler.alphas_cumprod[-1] == 0
    theirs = run(scheduler, as_unet(machine, scheduler), noise)
    assert torch.isfinite(theirs).all()
    # The first step starts where no image is left in x: the prediction of v is minus the posterior mean.
    mean = machine.posterior_mean(noise, 1 - 1e-6).mean
    first = as_unet(machine, scheduler)(noise, scheduler.timesteps[0]).sample
    torch.testing.assert_close(first, -mean, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own code
def test_heun_of_diffusers_converges_to_the_images_of_ours(diffusers, machine, noise):
    scheduler = diffusers.HeunDiscreteScheduler(beta_end=0.02, use_karras_sigmas=True)
    theirs = run(scheduler, as_unet(machine, scheduler), noise)
    levels = [float(s) for s in dict.fromkeys(scheduler.sigmas.tolist()) if s > 0]
    times = [time_of(machine.noise, s**2 / (1 + s**2)) for s in levels] + [0.0]
    ours = pi.sample(machine, x_T=noise, steps=times, sampler="heun").images
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own code
def test_dpmpp_of_diffusers_draws_the_images_of_ours(diffusers, machine, noise):
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_end=0.02, use_karras_sigmas=True)
    theirs = run(scheduler, as_unet(machine, scheduler), noise)
    levels = [float(s) for s in scheduler.sigmas if s > 0]
    times = [time_of(machine.noise, s**2 / (1 + s**2)) for s in levels] + [0.0]
    ours = pi.sample(machine, x_T=noise, steps=times, sampler="dpmpp").images
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-3)


def test_flow_matching_of_diffusers_draws_the_images_of_ours(diffusers, machine, noise):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs = run(scheduler, as_unet(machine, scheduler), noise)
    # The time of a flow is the time of the schedule "flow"; it starts at 1, where an image is noise alone.
    times = [min(float(s), 1 - 1e-6) for s in scheduler.sigmas]
    ours = pi.sample(machine, x_T=noise, steps=times, sampler="euler").images
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)


def test_a_pipeline_of_diffusers_takes_the_stand_in(diffusers, machine):
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    pipeline = diffusers.DDPMPipeline(unet=as_unet(machine, scheduler, label=5), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (2, 10, 10, 1)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.05


def test_class_labels_and_steps_per_image(diffusers, machine, noise):
    scheduler = diffusers.DDIMScheduler()
    unet = as_unet(machine, scheduler)
    labels, steps = torch.tensor([5, 2, 5]), torch.tensor([800, 100, 100])
    whole = unet(noise, steps, class_labels=labels).sample
    for i in range(3):
        (one,) = unet(noise[i : i + 1], steps[i], class_labels=labels[i : i + 1], return_dict=False)
        torch.testing.assert_close(one[0], whole[i], rtol=0, atol=1e-5)
        assert torch.equal(
            as_unet(machine, scheduler, label=int(labels[i]))(noise[i : i + 1], steps[i]).sample, one
        )


@pytest.mark.parametrize(
    ("step", "labels", "words"),
    [
        (800, torch.tensor([2]), "class_labels: there are 1 for 3 images; give one for each image"),
        (torch.tensor([800, 100]), None, "timestep: there are 2 for 3 images; give one for each image"),
    ],
)
def test_another_number_of_labels_or_steps_than_images_is_refused(machine, noise, step, labels, words):
    config = SimpleNamespace(num_train_timesteps=1000, prediction_type="epsilon")
    unet = as_unet(machine, SimpleNamespace(config=config, alphas_cumprod=torch.linspace(0.99, 0.01, 1000)))
    with pytest.raises(InputError, match=words):
        unet(noise[:3], step, class_labels=labels)


@pytest.mark.parametrize("scheduler", [None, "ddim", object()])
def test_other_schedulers_are_refused(machine, scheduler):
    with pytest.raises(InputError, match=r"scheduler: .* is no scheduler with alphas_cumprod"):
        as_unet(machine, scheduler)


def test_samplers_of_k_diffusion_draw_the_images_of_ours(machine, noise):
    sampling = pytest.importorskip("k_diffusion.sampling")
    sigmas = sampling.get_sigmas_karras(STEPS, 0.01, 80.0)
    times = [time_of(machine.noise, s**2 / (1 + s**2)) for s in sigmas[:-1].double().tolist()] + [0.0]
    for name, theirs_name in (("euler", "euler"), ("heun", "heun"), ("dpmpp", "dpmpp_2m")):
        theirs = getattr(sampling, f"sample_{theirs_name}")(
            machine.as_denoiser(), noise * sigmas[0], sigmas, disable=True
        )
        # Their noise has no share of an image: y = sigma eps, and x = y / sqrt(1 + sigma^2).
        x = noise * float(sigmas[0]) / (1 + float(sigmas[0]) ** 2) ** 0.5
        ours = pi.sample(machine, x_T=x, steps=times, sampler=name).images
        torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)
