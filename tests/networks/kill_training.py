"""Kill a training run (SIGKILL) before one of its file changes, resume it, and compare the weights.

    python tests/networks/kill_training.py FOLDER POINTS

The script is a process of its own, because it must fork before torch starts threads. It prints one line for
each point at which the run was killed: the number of the point, and the problems that were found.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch._dynamo  # noqa: F401  (torch.optim imports it: here once, before any fork)
from safetensors.torch import load_file

from patchindex.networks import TrainSettings, loop, open_run, train

STEPS = 2
SETTINGS = {"options": {"channels": 16, "layers": 1}, "batch_size": 8, "ema": 0.9, "lr": 1e-3}
LAST = 2  # all of the last changes are points: they complete the last checkpoint


class Run:
    """A run that writes a checkpoint after each step."""

    def __init__(self, folder: Path) -> None:
        with np.load("data/fashion_mnist_6k.npz") as data:
            self.images = data["images"][:20, ::4, ::4].copy()
        self.path = folder / "run"

    def do(self, steps: int = STEPS) -> str:
        """Train or resume; return `weights`."""
        train(self.images, self.path, TrainSettings(**SETTINGS, steps=steps), threads=1, resume=True)
        return self.weights()

    def killed_at(self, point: int) -> str:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            flags = arguments[2] if event == "open" else 0
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if (event == "os.rename" or writes) and str(self.path) in str(arguments[0]):
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        self.do()
        return str(count)

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


def in_a_child(work: Callable[[], str]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            result = work()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else result


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
        whole.append(in_a_child(lambda steps=steps: run.do(steps)))  # type: ignore[misc]
    reset()
    changes = int(in_a_child(lambda: run.killed_at(0)))
    for point in sorted({*np.linspace(1, changes, points).astype(int), *range(changes - LAST, changes + 1)}):
        reset()
        wrong = []
        if in_a_child(lambda at=int(point): run.killed_at(at)) != "killed":  # type: ignore[misc]
            wrong.append("was not killed")
        left = in_a_child(run.weights)
        if left not in whole and not left.startswith("0 "):
            wrong.append(f"left {left}")
        if (found := in_a_child(run.do)) != whole[-1]:
            wrong.append(f"ended with {found}, not {whole[-1]}")
        print(point, *wrong, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
