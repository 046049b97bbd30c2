r"""Samplers beside diffusers and k-diffusion, and the convergence of the ODE samplers.

    python benchmarks/samplers.py data/fashion_mnist_6k.npz --limit 1000 --plot FILE
    python benchmarks/samplers.py cifar10_train.npz --limit 10000 --label 3 -n 2

From the same noise and by exact scores, it draws images by our samplers; by `DDIMScheduler`,
`HeunDiscreteScheduler`, `DPMSolverMultistepScheduler` and `FlowMatchEulerDiscreteScheduler` of diffusers
around `as_unet`; and by the Euler, Heun and DPM-Solver++(2M) samplers of k-diffusion around `as_denoiser`. It
prints Pearson's r and the largest difference of the images. A library that is not installed is left out. Then
it draws by our samplers on more and more steps, and prints (and plots) the distance to the images of Heun's
method on the most steps.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, report, write_json
from matplotlib.figure import Figure
from torch import Tensor

import patchindex as pi
from patchindex.sampling import as_unet, draw_noise
from patchindex.schedules import linear, time_of
from patchindex.schedules.frames import beta_of_sigma

STEPS = 20  # of diffusers and k-diffusion; a divisor of 1000
GRIDS = (10, 20, 40, 80)
ODE = ("euler", "heun", "dpmpp")
HIGHEST, LOWEST = 80.0, 0.02  # sigma at the ends of the grid
LIMIT = 160  # steps of Heun's method, whose images stand for the limit


def run_diffusers(scheduler: Any, machine: pi.Denoiser, x: Tensor) -> Tensor:
    """Return the images of the sampling loop of diffusers."""
    scheduler.set_timesteps(STEPS)
    unet = as_unet(machine, scheduler)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(scaled, t).sample, t, x, return_dict=False)[0]
    return x


def compared(name: str, theirs: Tensor, ours: Tensor) -> dict[str, Any]:
    """Return r and the largest difference of two sets of images."""
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(theirs.numpy(), ours.numpy(), strict=True)]
    return {"sampler": name, "least r": min(r), "largest difference": float((theirs - ours).abs().max())}


def beside_diffusers(machine: pi.ScoreMachine, noise: Tensor) -> list[dict[str, Any]]:
    """Compare with four schedulers of diffusers."""
    diffusers = import_module("diffusers")
    rows = []
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", beta_end=0.02)
    theirs = run_diffusers(scheduler, machine, noise)
    times = [min((int(n) + 1) / 1000, 1 - 1e-12) for n in scheduler.timesteps] + [0.0]
    betas = [linear(t) for t in times[:-1]]
    ours = pi.sample(machine, x_T=noise, steps=[*(time_of(machine.noise, b) for b in betas), 0.0]).images
    rows.append(compared("DDIM, diffusers", theirs, ours))
    for name, sampler, kind in (
        ("Heun, diffusers", "heun", diffusers.HeunDiscreteScheduler),
        ("DPM-Solver++, diffusers", "dpmpp", diffusers.DPMSolverMultistepScheduler),
    ):
        scheduler = kind(beta_end=0.02, use_karras_sigmas=True)
        theirs = run_diffusers(scheduler, machine, noise)
        levels = [s for s in dict.fromkeys(scheduler.sigmas.double().tolist()) if s > 0]
        times = [*(time_of(machine.noise, beta_of_sigma(s)) for s in levels), 0.0]
        ours = pi.sample(machine, x_T=noise, steps=times, sampler=sampler).images
        rows.append(compared(name, theirs, ours))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs = run_diffusers(scheduler, machine, noise)
    times = [min(float(s), 1 - 1e-6) for s in scheduler.sigmas]
    ours = pi.sample(machine, x_T=noise, steps=times, sampler="euler").images
    return [*rows, compared("flow matching, diffusers", theirs, ours)]


def beside_k_diffusion(machine: pi.ScoreMachine, noise: Tensor) -> list[dict[str, Any]]:
    """Compare with three samplers of k-diffusion."""
    sampling = import_module("k_diffusion.sampling")
    sigmas = sampling.get_sigmas_karras(STEPS, 0.01, 80.0)
    levels = sigmas[:-1].double().tolist()
    times = [*(time_of(machine.noise, beta_of_sigma(s)) for s in levels), 0.0]
    x = noise * beta_of_sigma(levels[0]) ** 0.5  # their noise has no share of an image
    rows = []
    for name, theirs_name in (("euler", "euler"), ("heun", "heun"), ("dpmpp", "dpmpp_2m")):
        draw = getattr(sampling, f"sample_{theirs_name}")
        theirs = draw(machine.as_denoiser(), noise * sigmas[0], sigmas, disable=True)
        ours = pi.sample(machine, x_T=x, steps=times, sampler=name).images
        rows.append(compared(f"{name}, k-diffusion", theirs, ours))
    return rows


def convergence(machine: pi.ScoreMachine, noise: Tensor) -> list[dict[str, Any]]:
    """Return the distance of images to the limit, by sampler and number of steps."""

    def images(sampler: str, steps: int) -> Tensor:
        # Steps of Heun's method to a sigma that is much smaller than the step are unstable on coarse grids.
        ramp = np.linspace(HIGHEST ** (1 / 7), LOWEST ** (1 / 7), steps - 1) ** 7
        times = [*(time_of(machine.noise, beta_of_sigma(float(s))) for s in ramp), 0.0]
        return pi.sample(machine, x_T=noise, steps=times, sampler=sampler).images

    limit = images("heun", LIMIT)
    rows = []
    for sampler in ODE:
        evaluations = pi.sampling.SAMPLERS[sampler].evaluations
        for steps in GRIDS:
            distance = (images(sampler, steps) - limit).square().mean((1, 2, 3)).sqrt()
            calls = evaluations * (steps - 1) - (evaluations - 1)
            rms = float(distance.median())
            rows.append({"sampler": sampler, "steps": steps, "evaluations": calls, "rms": rms})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the distance to the limit against the evaluations."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for sampler in ODE:
        mine = [row for row in rows if row["sampler"] == sampler]
        axes.loglog([row["evaluations"] for row in mine], [row["rms"] for row in mine], "o-", label=sampler)
    axes.set(xlabel="evaluations of the score", ylabel=f"rms distance to Heun in {LIMIT} steps")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, help="images of the source that are used")
    parser.add_argument("--label", type=int)
    parser.add_argument("--machine", default="ELS")
    parser.add_argument("--locality", default="5", help="a locality scale, or the name of a preset")
    parser.add_argument("-n", type=int, default=4, help="images that are drawn")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    images = pi.open_images(args.source, limit=args.limit)
    locality = int(args.locality) if args.locality.isdigit() else args.locality
    machine = pi.ScoreMachine(
        images, machine=args.machine, locality=locality, noise="flow", estimator="exact", label=args.label
    )
    noise = draw_noise(0, args.n, machine.shape)
    libraries = [name for name in ("diffusers", "k_diffusion") if util.find_spec(name)]
    beside = {"diffusers": beside_diffusers, "k_diffusion": beside_k_diffusion}
    rows = [row for name in libraries for row in beside[name](machine, noise)]
    with torch.no_grad():
        steps = convergence(machine, noise)
    if args.plot:
        plot(steps, args.plot)
    report(rows, {"sampler": "", "least r": ".6f", "largest difference": ".2g"})
    report(steps, {"sampler": "", "steps": "d", "evaluations": "d", "rms": ".4f"})
    write_json(args.json, beside=rows, convergence=steps)


if __name__ == "__main__":
    main()
