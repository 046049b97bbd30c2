"""Kill a training run (SIGKILL) before one of its file changes, resume it, and compare the weights.

    python tests/kill_training.py FOLDER POINTS

The script is a process of its own, because it must fork before torch starts threads. It prints one line for
each point at which the run was killed: the number of the point, and the problems that were found.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo  # noqa: F401  (torch.optim imports it: here once, before any fork)
from children import in_a_child, killed_at, opens_to_write
from safetensors.torch import load_file

from patchindex.networks import TrainSettings, loop, open_run, train

IMAGES = Path(__file__).parents[1] / "data" / "fashion_mnist_6k.npz"
STEPS = 2
SETTINGS = {"options": {"channels": 16, "layers": 1}, "batch_size": 8, "ema": 0.9, "lr": 1e-3}
LAST = 2  # all of the last changes are points: they complete the last checkpoint


class Run:
    """A run that writes a checkpoint after each step."""

    def __init__(self, folder: Path) -> None:
        with np.load(IMAGES) as data:
            self.images = data["images"][:20, ::4, ::4].copy()
        self.path = folder / "run"

    def do(self, steps: int = STEPS) -> str:
        """Train or resume; return `weights`."""
        train(self.images, self.path, TrainSettings(**SETTINGS, steps=steps), threads=1, resume=True)
        return self.weights()

    def is_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether an audit event changes files of the run."""
        is_write = event == "os.rename" or opens_to_write(event, arguments)
        return is_write and str(self.path) in str(arguments[0])

    def weights(self) -> str:
        """Return the step and a hash of the weights to use, or "nothing"."""
        if not (self.path / "weights.safetensors").exists():
            return "nothing"
        found = hashlib.sha256()
        for name, tensor in sorted(load_file(self.path / "weights.safetensors").items()):
            found.update(name.encode() + tensor.numpy().tobytes())
        run = open_run(self.path).run
        assert run is not None
        return f"{run['step']} {found.hexdigest()}"


def main(folder: Path, points: int) -> None:
    loop.CHECKPOINT_SECONDS = 0.0
    loop.plot_losses = lambda *_: None  # takes most of the time
    run = Run(folder)

    def reset() -> None:
        shutil.rmtree(run.path, ignore_errors=True)

    # The weights after each step, each trained without interruption.
    whole = ["nothing"]
    for steps in range(1, STEPS + 1):
        reset()
        whole.append(in_a_child(partial(run.do, steps)))
    reset()
    changes = int(in_a_child(partial(killed_at, 0, run.is_change, run.do)))
    for point in sorted({*np.linspace(1, changes, points).astype(int), *range(changes - LAST, changes + 1)}):
        reset()
        wrong = []
        if in_a_child(partial(killed_at, int(point), run.is_change, run.do)) != "killed":
            wrong.append("was not killed")
        left = in_a_child(run.weights)
        if left not in whole and not left.startswith("0 "):
            wrong.append(f"left {left}")
        if (found := in_a_child(run.do)) != whole[-1]:
            wrong.append(f"ended with {found}, not {whole[-1]}")
        print(point, *wrong, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
