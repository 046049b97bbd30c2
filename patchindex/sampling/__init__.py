"""Samplers: free functions over any score, and `sample`, which draws with a denoiser."""

from patchindex.denoisers.noising import draw_noise
from patchindex.sampling.adapters import as_unet
from patchindex.sampling.conditions import ImageStart, KnownPixels
from patchindex.sampling.drawing import Sampling, sample
from patchindex.sampling.draws import starting_noise
from patchindex.sampling.grids import SPACINGS, time_grid
from patchindex.sampling.pictures import image_grid
from patchindex.sampling.result import SampleResult
from patchindex.sampling.samplers import SAMPLERS, Sampler, ddim, ddpm, dpmpp, euler, heun
from patchindex.sampling.trajectory import Step, Trajectory, TrajectoryFile

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "ImageStart",
    "KnownPixels",
    "SampleResult",
    "Sampler",
    "Sampling",
    "Step",
    "Trajectory",
    "TrajectoryFile",
    "as_unet",
    "ddim",
    "ddpm",
    "dpmpp",
    "draw_noise",
    "euler",
    "heun",
    "image_grid",
    "sample",
    "starting_noise",
    "time_grid",
]
