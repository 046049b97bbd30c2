"""The work of `patchindex sample`: images that are kept as they are finished, and the files of the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option

from .options import count_option, grouped
from .output import count, echo

if TYPE_CHECKING:
    from distributed import Client

    from patchindex import SampleResult
    from patchindex.runtime import Progress
    from patchindex.sampling import Sampling
    from patchindex.study.parts import Parts

RECORD = "samples.json"
FILES = ("grid.png", "samples.npz", RECORD)
TRAJECTORY, FILMSTRIP = "trajectory.zarr", "filmstrip.png"
PNG = "png"  # a folder of single images
OUTPUTS = (*FILES, TRAJECTORY, FILMSTRIP, PNG)
STRIP_IMAGES = 6  # of the filmstrip
PARTS = "parts"  # the folder of `Parts`
NAME, KIND = "samples", "images"  # of the finished parts


@dataclass(frozen=True)
class OutputOptions:
    """Options of the files that are written."""

    save_trajectory: bool
    png: bool
    columns: int | None
    resume: bool


output_options = grouped(
    "files",
    OutputOptions,
    [
        click.option("--save-trajectory", is_flag=True, help="Also write trajectory.zarr and filmstrip.png."),
        click.option("--png", is_flag=True, help="Also write each image by itself, as png/00000.png, ..."),
        count_option(
            "--columns", "Images per row of the grid.  [default: about square, or a row per --label]"
        ),
        click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command."),
    ],
)


def files_in_the_way(output: Path, *, resume: bool) -> Sequence[str]:
    """Return the files that a run may not replace: not the files of the run that it resumes.

    An interrupted run has left its images, and a trajectory; a finished run has left samples.json, which
    `Drawing.finished_record` compares with the settings.
    """
    if os.path.exists(output / PARTS):
        return () if resume else FILES
    return () if resume and os.path.exists(output / RECORD) else OUTPUTS


class Drawing:
    """A run of `patchindex sample` and its output folder.

    Parameters
    ----------
    output : Path
    sampling : Sampling
    inputs : dict
        What the settings of `sampling` do not tell: the fingerprints of the store and of files.
    png : bool
        Also write each image by itself.
    """

    def __init__(
        self, output: Path, sampling: Sampling, inputs: dict[str, Any], *, png: bool = False
    ) -> None:
        self.output, self.sampling, self.png = output, sampling, png
        settings = {**sampling.settings, **inputs, "trajectory": sampling.trajectory}
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))

    def hold(self) -> AbstractContextManager[None]:
        """Keep other processes from the output folder in a block."""
        from patchindex.study.parts import hold_folder

        return hold_folder(self.output)

    def finished_record(self, *, overwrite: bool = False) -> dict[str, Any] | None:
        """Return the record of an earlier run of these settings that wrote all its files, or None.

        Files of other settings are refused, unless `overwrite` is given. An interrupted run that has left
        finished images is to replace the files, whatever their settings.
        """
        path = self.output / RECORD
        if not path.is_file() or any((self.output / PARTS).rglob("*.npz")):
            return None
        try:
            record = json.loads(path.read_text())
            found = record["settings"]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict) or _of_images(found) != _of_images(self.settings):
            if overwrite:
                return None
            raise InputError(
                "has samples of other settings",
                where=self.output,
                remedy=["use the same settings, another folder, or ", Option("overwrite", True)],
            )
        return record if all(file.exists() for file in self.files) else None

    @property
    def files(self) -> list[Path]:
        """The files that the run writes, the grid first."""
        return [self.output / name for name in self._names]

    @property
    def _names(self) -> Sequence[str]:
        """The names of the files that the run writes, the grid first."""
        more = (TRAJECTORY, FILMSTRIP) if self.sampling.trajectory else ()
        return (*FILES, *more, *((PNG,) if self.png else ()))

    def open_parts(self, *, resume: bool, overwrite: bool) -> Parts:
        """Return the finished images of an interrupted run; refuse images of other settings."""
        from patchindex.sampling.result import RECORDED
        from patchindex.study.parts import Parts

        shapes = {"images": self.sampling.denoiser.shape, "records": (self.sampling.calls, len(RECORDED))}
        settings = _of_images(self.settings)
        parts = Parts(self.output, settings, lambda *_: shapes, resume=resume, overwrite=overwrite)
        kept = parts.any()
        if kept and self.sampling.trajectory and not (self.output / TRAJECTORY).exists():
            raise InputError(
                f"has finished images without {TRAJECTORY}",
                where=self.output,
                remedy=["put it back, or use ", Option("overwrite", True)],
            )
        if not kept:  # a trajectory of an earlier run would be taken for that of these samples
            self._remove_trajectory()
        return parts

    def draw(self, parts: Parts, progress: Progress, client: Client | None = None) -> SampleResult:
        """Draw the images that are not finished, here or on a cluster; return all images."""
        import torch

        from patchindex import SampleResult
        from patchindex.sampling.result import array_to_records

        sampling, everything = self.sampling, range(len(self.sampling.x_T))
        try:
            batches = sampling.batches_of(parts.missing(NAME, KIND, everything))
            for (lo, hi), result in self._drawn(batches, progress, client):
                self._keep(parts, lo, hi, result)
        except BaseException:
            finished = len(everything) - len(parts.missing(NAME, KIND, everything))
            if finished:
                what = f"{finished} of {count(len(everything), 'image')} are finished"
                echo(f"{self.output}: {what}; give --resume to continue", err=True)
            else:
                self._remove_trajectory()
                self._remove_parts()
            raise
        found = parts.get(NAME, KIND, everything)
        records = [
            record
            for number, array in zip(everything, found["records"], strict=True)
            if array[0, 0] == sampling.first + number  # all images of a batch have its records
            for record in array_to_records(array)
        ]
        return SampleResult(torch.from_numpy(found["images"]), sampling.x_T, records, sampling.settings)

    def _drawn(
        self, batches: Sequence[tuple[int, int]], progress: Progress, client: Client | None
    ) -> Iterator[tuple[tuple[int, int], SampleResult]]:
        """Yield batches with their images."""
        from patchindex import cluster

        if client is not None:
            yield from cluster.draw_batches(client, self.sampling, batches, progress)
            return
        self.sampling.prepare(progress)
        for lo, hi in batches:
            yield (lo, hi), self.sampling.draw(lo, hi, progress)

    def _keep(self, parts: Parts, lo: int, hi: int, result: SampleResult) -> None:
        """Keep the results of a batch."""
        import numpy as np

        from patchindex.sampling import TrajectoryFile
        from patchindex.sampling.result import records_to_array

        if result.trajectory is not None:  # before the images: a part says that all of a batch is there
            TrajectoryFile(self.output / TRAJECTORY).write(result.trajectory, lo, len(self.sampling.x_T))
        records = records_to_array(result.steps, self.sampling.calls)
        parts.add(
            NAME, KIND, range(lo, hi),
            images=result.images.cpu().numpy(), records=np.stack([records] * (hi - lo)),
        )  # fmt: skip

    def write(
        self, result: SampleResult, record: dict[str, Any], columns: int | None, row_names: Sequence[str] = ()
    ) -> list[Path]:
        """Write all files, delete the parts, and return the files, the grid first.

        The files are made in a temporary folder first, so that the output folder never has half a file.
        """
        import numpy as np

        from patchindex.sampling import TrajectoryFile
        from patchindex.sampling.pictures import filmstrip, image_grid, pictures_of

        labels = [-1 if label is None else label for label in self.sampling.labels]  # -1: all labels
        with tempfile.TemporaryDirectory(dir=self.output, prefix=".writing-") as scratch:
            folder = Path(scratch)
            image_grid(result.images, columns, row_names=row_names).save(folder / "grid.png")
            np.savez_compressed(
                folder / "samples.npz",
                images=result.images.cpu().numpy(),
                x_T=result.x_T.cpu().numpy(),
                labels=np.array(labels),
                settings=json.dumps(self.settings),
            )
            (folder / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n")
            if self.sampling.trajectory:
                shown = range(min(len(result.images), STRIP_IMAGES))
                trajectory = TrajectoryFile(self.output / TRAJECTORY).read(shown)
                filmstrip(trajectory, result.images).save(folder / FILMSTRIP)
            elif (self.output / FILMSTRIP).exists():  # of an earlier run
                (self.output / FILMSTRIP).unlink()
            self._remove_pictures()
            if self.png:
                (folder / PNG).mkdir()
                for i, picture in enumerate(pictures_of(result.images)):
                    picture.save(folder / PNG / f"{i:05d}.png")
            for name in self._names:
                if name == PNG:
                    shutil.copytree(folder / PNG, self.output / PNG, dirs_exist_ok=True)
                elif name != TRAJECTORY:  # there already
                    shutil.move(os.fspath(folder / name), self.output / name)
        self._remove_parts()
        return self.files

    def _remove_trajectory(self) -> None:
        if (self.output / TRAJECTORY).exists():
            shutil.rmtree(self.output / TRAJECTORY)

    def _remove_pictures(self) -> None:
        """Remove the single images of an earlier run, and no other file of their folder."""
        if not (self.output / PNG).is_dir():
            return
        for file in (self.output / PNG).glob("[0-9][0-9][0-9][0-9][0-9].png"):
            file.unlink()
        if not any((self.output / PNG).iterdir()):
            (self.output / PNG).rmdir()

    def _remove_parts(self) -> None:
        shutil.rmtree(self.output / PARTS)


def _of_images(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide on the images: not the size of batches."""
    return {name: value for name, value in settings.items() if name != "batch_size"}


def cost_of(records: Sequence[dict[str, Any]], shape: tuple[int, int, int]) -> str:
    """Return one line on the cost and the error of a sample of images of a shape (C, H, W).

    Examples
    --------
    >>> from patchindex.sampling import Sampling
    >>> from patchindex import ScoreMachine
    >>> import numpy as np
    >>> machine = ScoreMachine(np.zeros((9, 8, 8), np.uint8), machine="IS")
    >>> s = Sampling(machine, n=1, steps=3)
    >>> cost_of(s.draw(0, 1).steps, machine.shape)
    '1,152 patches evaluated, 100 % of pixels exactly; largest standard error of a step 0'
    """
    evaluated = sum(record["patches_evaluated"] for record in records)
    if not evaluated:
        return "no patches evaluated"
    exact = sum(record["exact_pixels"] for record in records)
    _, height, width = shape
    pixels = sum(record["images"] for record in records) * height * width
    errors = [record["stderr"] for record in records if record["stderr"] is not None]
    largest = f"; largest standard error of a step {max(errors):.2g}" if errors else ""
    return f"{evaluated:,} patches evaluated, {100 * exact / pixels:.3g} % of pixels exactly{largest}"
