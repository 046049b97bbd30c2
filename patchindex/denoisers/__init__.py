"""Denoisers: estimates of E[x_0 | x_t] under one contract."""

from patchindex.denoisers.attribution import Attribution, Attributions
from patchindex.denoisers.base import Call, Denoiser
from patchindex.denoisers.from_images import DenoiserOptions, TrainingDenoiser, is_store
from patchindex.denoisers.gaussian_mixture import GaussianMixture
from patchindex.denoisers.machine import ScoreMachine
from patchindex.denoisers.moments import ImageMoments, image_moments
from patchindex.denoisers.nearest import NearestImage
from patchindex.denoisers.pca_locality import PCALocality
from patchindex.denoisers.pspc import PSPC
from patchindex.denoisers.registry import (
    DENOISERS,
    denoiser,
    parse_denoiser,
    register_denoiser,
    takes_locality,
)
from patchindex.denoisers.smoothed import SmoothedClosedForm
from patchindex.denoisers.wiener import Wiener
from patchindex.modules import import_modules

__all__ = [
    "DENOISERS",
    "PSPC",
    "Attribution",
    "Attributions",
    "Call",
    "Denoiser",
    "DenoiserOptions",
    "GaussianMixture",
    "ImageMoments",
    "NearestImage",
    "PCALocality",
    "ScoreMachine",
    "SmoothedClosedForm",
    "TrainingDenoiser",
    "Wiener",
    "denoiser",
    "image_moments",
    "is_store",
    "parse_denoiser",
    "register_denoiser",
    "takes_locality",
]

import_modules(__name__, __path__)  # every module registers its denoisers
