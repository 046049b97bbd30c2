"""Kill an operation on a store (SIGKILL) before one of its file changes, resume it, and compare the stores.

    python tests/kill_points.py build|overwrite|append|add_scales FOLDER POINTS

The script is a process of its own, because it must fork before torch starts threads. It prints one line for
each point at which the operation was killed: the number of the point, and the problems that were found.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from children import in_a_child, killed_at, load_libraries, opens_to_write

import patchindex as pi
from patchindex.build import shards

IMAGES = Path(__file__).parents[1] / "data" / "fashion_mnist_6k.npz"
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
LAST = 8  # all of the last changes are points: they put the new store in its place


class Operation:
    """An operation that makes a store, from an older store or from none."""

    def __init__(self, name: str, folder: Path) -> None:
        with np.load(IMAGES) as data:
            self.images, self.labels = data["images"][:60, ::2, ::2].copy(), data["labels"][:60].astype(int)
        self.name, self.folder, self.path = name, folder, folder / "at" / "s.zarr"
        self.base = None if name == "build" else folder / "base.zarr"

    def prepare(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.mkdir(parents=True)
        if self.base is not None:
            shutil.copytree(self.base, self.path)

    def do(self, resume: bool) -> str:
        if self.name == "append":
            pi.append(self.path, self.images[40:], self.labels[40:], threads=1, resume=resume)
        elif self.name == "add_scales":
            pi.add_scales(self.path, [5], threads=1)
        else:
            over = self.name == "overwrite"
            pi.build_index(self.images, self.path, [3], self.labels, threads=1, resume=resume, overwrite=over)
        return "done"

    def is_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return whether an audit event changes files of the store."""
        return event in CHANGES or (opens_to_write(event, arguments) and str(self.path) in str(arguments[0]))

    def state(self) -> str:
        """Return a description of the whole store and of the files beside it."""
        report = pi.verify(self.path)
        index = pi.open_index(self.path)
        found = hashlib.sha256(index.training.read(0, len(index.training)).tobytes())
        for k in index.scales:
            for _, ids, codes in index.scale(k).members():
                found.update(ids.tobytes() + codes.tobytes())
        # A lock file that no process holds has no effect.
        beside = sorted(path.name for path in self.path.parent.iterdir() if path.suffix != ".lock")
        listed = (self.path / "scales.json").read_text().strip()
        return f"{index.scales} {found.hexdigest()} {report.problems}; {listed} {beside}"

    def store(self) -> str:
        """Return a description of the store at the path, whatever is beside it."""
        return self.state().partition("; ")[0] if self.path.exists() else "nothing"


def main(name: str, folder: Path, points: int) -> None:
    shards.SHARD_BYTES, shards.PIECE_BYTES = 20_000, 0  # several shards
    load_libraries()
    operation = Operation(name, folder)
    if operation.base is not None:
        some = slice(0, 60 if name == "add_scales" else 40)
        images, labels = operation.images[some], operation.labels[some]
        path = operation.base
        in_a_child(lambda: str(pi.build_index(images, path, [3], labels, threads=1)))
    operation.prepare()
    before = in_a_child(operation.store)
    work = partial(operation.do, resume=False)
    in_a_child(work)
    after = in_a_child(operation.state)
    if (problems := in_a_child(lambda: str(pi.verify(operation.path).problems))) != "()":
        raise SystemExit(f"without a kill, the store has {problems}")
    operation.prepare()
    changes = int(in_a_child(partial(killed_at, 0, operation.is_change, work)))
    for point in {*np.linspace(1, changes, points).astype(int), *range(changes - LAST, changes + 1)}:
        operation.prepare()
        wrong = []
        if in_a_child(partial(killed_at, int(point), operation.is_change, work)) != "killed":
            wrong.append("was not killed")
        if (found := in_a_child(operation.store)) not in (before, after.partition("; ")[0], "nothing"):
            wrong.append(f"left {found}")
        in_a_child(partial(operation.do, resume=True))
        if (found := in_a_child(operation.state)) != after:
            wrong.append(f"ended with {found}, not {after}")
        print(point, *wrong, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
