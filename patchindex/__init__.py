"""patchindex: analytic diffusion models on real data sets.

The score machines of Kamb & Ganguli (arXiv 2412.20292), exact or from an index of every training patch.

Examples
--------
>>> import numpy as np
>>> import patchindex as pi
>>> images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8)
>>> m = pi.ScoreMachine(images, machine="ELS", estimator="exact", locality=[3, 3, 5, 7])
>>> pi.sample(m, n=2, steps=5).images.shape
torch.Size([2, 1, 16, 16])
"""

from importlib.metadata import version as _version

from patchindex import cluster, study
from patchindex import runtime as _backends  # first: it fixes the order in which torch and faiss are imported
from patchindex.build import add_scales, append, build_index
from patchindex.denoisers.score_machine import ScoreMachine
from patchindex.errors import PatchIndexError
from patchindex.estimators import ESTIMATORS, Estimate
from patchindex.images import ImageSource, open_images
from patchindex.index import PatchIndex, open_index, verify
from patchindex.sampling.samplers import SampleResult, sample
from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule
from patchindex.softmax import SoftmaxState
from patchindex.study.tune import tune

__all__ = [
    "ESTIMATORS",
    "LOCALITY_PRESETS",
    "Estimate",
    "ImageSource",
    "LocalitySchedule",
    "PatchIndex",
    "PatchIndexError",
    "SampleResult",
    "ScoreMachine",
    "SoftmaxState",
    "add_scales",
    "append",
    "build_index",
    "cluster",
    "open_images",
    "open_index",
    "sample",
    "study",
    "tune",
    "verify",
]

__version__ = _version("patchindex")
del _backends
