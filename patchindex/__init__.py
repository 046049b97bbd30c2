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

import logging
from typing import TYPE_CHECKING

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "DENOISERS",
    "ESTIMATORS",
    "LOCALITY_PRESETS",
    "Attribution",
    "Denoiser",
    "Estimate",
    "ImageSource",
    "LocalitySchedule",
    "PatchIndex",
    "PatchIndexError",
    "PatchIndexWarning",
    "Provenance",
    "SampleResult",
    "ScoreMachine",
    "SoftmaxState",
    "add_scales",
    "append",
    "build_index",
    "cluster",
    "denoiser",
    "explain",
    "networks",
    "open_images",
    "open_index",
    "register_denoiser",
    "sample",
    "sampling",
    "study",
    "tune",
    "verify",
]

# Type checkers read the imports. At run time each name is imported on first use (PEP 562), because torch,
# numba and zarr take seconds to import.
if TYPE_CHECKING:
    from patchindex import cluster, explain, networks, sampling, study
    from patchindex.build import add_scales, append, build_index
    from patchindex.denoisers import (
        DENOISERS,
        Attribution,
        Denoiser,
        ScoreMachine,
        denoiser,
        register_denoiser,
    )
    from patchindex.errors import PatchIndexError, PatchIndexWarning
    from patchindex.estimators import ESTIMATORS, Estimate
    from patchindex.images import ImageSource, open_images
    from patchindex.index import PatchIndex, open_index, verify
    from patchindex.sampling import SampleResult, sample
    from patchindex.schedules import LOCALITY_PRESETS, LocalitySchedule, Provenance
    from patchindex.softmax import SoftmaxState
    from patchindex.study.tune import tune

    __version__: str
else:
    _NAMES = {
        "build": ["add_scales", "append", "build_index"],
        "denoisers": [
            "DENOISERS",
            "Attribution",
            "Denoiser",
            "ScoreMachine",
            "denoiser",
            "register_denoiser",
        ],
        "errors": ["PatchIndexError", "PatchIndexWarning"],
        "estimators": ["ESTIMATORS", "Estimate"],
        "images": ["ImageSource", "open_images"],
        "index": ["PatchIndex", "open_index", "verify"],
        "sampling": ["SampleResult", "sample"],
        "schedules": ["LOCALITY_PRESETS", "LocalitySchedule", "Provenance"],
        "softmax": ["SoftmaxState"],
        "study.tune": ["tune"],
    }
    _MODULES = {name: f"patchindex.{module}" for module, names in _NAMES.items() for name in names}

    def __getattr__(name):
        from importlib import import_module

        if name == "__version__":
            from importlib.metadata import version

            value = version("patchindex")
        elif name in _MODULES:
            value = getattr(import_module(_MODULES[name]), name)
        elif name in __all__:
            value = import_module(f"patchindex.{name}")
        else:
            raise AttributeError(f"module 'patchindex' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"})
