"""The authors' score modules (Kamb & Ganguli), from a checkout of their repository."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = {
    "ELS": "LocalEquivScoreModule",
    "bbELS": "LocalEquivBordersScoreModule",
    "LS": "LocalScoreModule",
    "IS": "IdealScoreModule",
}

# Imported by the authors' file for data sets and pictures, which are not used here.
UNUSED = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.datasets",
    "torchvision.models",
    "matplotlib",
    "matplotlib.pyplot",
    "matplotlib.cm",
)


def load(folder: Path) -> ModuleType:
    """Import the authors' `utils/idealscore.py`, with empty modules for missing ones of `UNUSED`."""
    for name in UNUSED:
        package, _, module = name.partition(".")
        if importlib.util.find_spec(package) is None or getattr(sys.modules.get(package), "empty", False):
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(empty=True, __spec__=ModuleSpec(name, None))
            if module:
                setattr(sys.modules[package], module, sys.modules[name])
    spec = importlib.util.spec_from_file_location("idealscore", folder / "utils" / "idealscore.py")
    if spec is None or spec.loader is None or not Path(spec.origin or "").is_file():
        raise SystemExit(f"{folder}: no checkout of the authors' repository (utils/idealscore.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reference:
    """A module of the authors over some images, with the batch sizes of their `els_script.py`."""

    def __init__(
        self,
        module: ModuleType,
        machine: str,
        images: np.ndarray,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device = device
        values = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        data = torch.utils.data.TensorDataset(values, torch.zeros(len(values), dtype=torch.int64))
        self._module: Any = getattr(module, CLASSES[machine])(
            data,
            image_size=images.shape[1],
            channels=images.shape[3],
            schedule=module.cosine_noise_schedule,
            batch_size=256 if machine in ("ELS", "bbELS") else len(images),
        )

    def posterior_mean(self, x: Tensor, t: float, k: int, a: float, beta: float) -> Tensor:
        """Return the posterior mean, computed from the score of the module."""
        with torch.no_grad():
            times = torch.full((len(x),), t, device=self._device)
            score = self._module(times, x, device=self._device, k=k)
        return (beta * score + x) / a
