"""Open and use damaged inputs, each in a child process with limits of memory and time.

    python tests/fuzz/fuzz_files.py --cases 10000

prints a table of outcomes by format. A mutant of an image source must be refused in one line, or give the
pixels that NumPy, h5py, zarr or Pillow give; a mutant of a network, a schedule or the results of a comparison
must be refused, or give what torch, diffusers, json or NumPy give. `--keep FOLDER` keeps the mutants that do
neither. Seed, format and number make a case again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from inputs import INPUTS
from mutants import SEEDS, write_mutant
from reference import read_reference

from patchindex.errors import PatchIndexError
from patchindex.images import open_images

SECONDS, WAITING = 10, 60  # of the processor, and by the clock: others use the machine too
MEMORY = 1 << 30  # bytes that a child may take, more than its parent has
MOST_OUTPUT = 1 << 16  # bytes of warnings of libraries
EVERY: dict[str, Any] = SEEDS | INPUTS
GOOD = ("refused", "right", "no reference")
OUTCOMES = (*GOOD, "wrong", "traceback", "signal", "hang", "memory", "flood")


def run_case(name: str, seed: int, number: int, keep: Path | None = None) -> tuple[str, str]:
    """Return the outcome of a case, and what was said."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        source = write_mutant(EVERY[name], folder, random.Random(f"{seed} {name} {number}"))
        outcome, said = in_child(name, folder, source)
        if outcome not in GOOD and keep is not None:
            shutil.copytree(folder, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
        return outcome, said
    finally:
        shutil.rmtree(folder)


def in_child(name: str, folder: Path, source: str) -> tuple[str, str]:
    """Open and read a source in a child process."""
    report, output = folder.with_suffix(".report"), folder.with_suffix(".output")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            for stream in (1, 2):
                os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
            limit = virtual_memory() + 2 * MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            signal.alarm(WAITING)
            examine(name, folder, source, report)
        finally:
            os._exit(0)
    _, status, usage = os.wait4(child, 0)
    found = json.loads(report.read_text()) if report.exists() else ["traceback", "no report"]
    flood = output.exists() and output.stat().st_size > MOST_OUTPUT
    report.unlink(missing_ok=True)
    output.unlink(missing_ok=True)
    if os.WIFSIGNALED(status):
        kind = "hang" if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU) else "signal"
        return kind, f"signal {os.WTERMSIG(status)} after {found}"
    if usage.ru_maxrss * 1024 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + MEMORY:
        return "memory", f"{usage.ru_maxrss >> 10} MiB after {found}"
    return ("flood", found[1]) if flood else (found[0], found[1])


def virtual_memory() -> int:
    """Return the bytes of address space that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def examine(name: str, folder: Path, source: str, report: Path) -> None:
    """Write the outcome of a case into a file."""

    def say(outcome: str, text: object = "") -> None:
        report.write_text(json.dumps([outcome, str(text)]))

    warnings.simplefilter("ignore")
    say("traceback", "it ended while it read the mutant")
    try:
        found = INPUTS[name].use(folder) if name in INPUTS else pixels(name, folder, source)
    except PatchIndexError as error:
        text = str(error)
        one_line = text.isprintable() and len(text) < 2000 and (error.exit_code == 2 or name in INPUTS)
        say("refused" if one_line else "flood", text)
        return
    except MemoryError as error:
        say("memory", error)
        return
    except BaseException as error:
        import traceback

        say("traceback", f"{error!r} {traceback.format_exc()[-1500:]}")
        return
    say("no reference", "it ended while the reference was read")
    read = INPUTS[name].reference if name in INPUTS else partial(read_reference, name, source=source)
    if read is None:
        say("no reference", repr(found)[:300])
        return
    try:
        expected = read(folder)
    except Exception as error:
        say("no reference", repr(error))
        return
    if name in SEEDS and expected[1] is None:  # labels that no file names
        found, expected = found[0], expected[0]
    say("right" if is_same(found, expected) else "wrong", repr(found)[:300])


def pixels(name: str, folder: Path, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the images and the labels of a source."""
    labels = SEEDS[name].labels
    options: dict[str, Any] = {} if labels is None else {"labels": folder / labels}
    if name == "celeba":
        options = {"labels": "attr:Smiling,Male"}
    opened = open_images(folder / source, **options)
    return opened[:], opened.labels


def is_same(found: Any, expected: Any) -> bool:
    """Return whether a result is the expected one; arrays of floats up to float32 rounding.

    The result of a network is a sum of terms that cancel, so its rounding is relative to the largest value.
    """
    if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        finite = np.abs(expected[np.isfinite(expected)])
        largest = max(1.0, float(finite.max(initial=0)))
        return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-4, atol=1e-4 * largest)
    if isinstance(expected, np.ndarray):
        return found is not None and np.array_equal(found, expected)
    if isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=True)
        return len(found) == len(expected) and all(is_same(*pair) for pair in pairs)
    return found == expected


def main() -> int:
    """Run the cases, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=10_000, help="number of mutants, of all formats together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=EVERY, action="append", help="by default, all")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each format")
    parser.add_argument("--keep", type=Path, help="folder for the mutants that are not handled well")
    parser.add_argument("--show", action="store_true", help="print what was said of each mutant")
    options = parser.parse_args()
    names, bad, start = options.format or list(EVERY), 0, time.perf_counter()
    print(f"{'format':14}" + "".join(f"{outcome:>13}" for outcome in OUTCOMES))
    for name in names:
        counts: Counter[str] = Counter()
        for number in range(options.first, options.first + -(-options.cases // len(names))):
            outcome, said = run_case(name, options.seed, number, options.keep)
            counts[outcome] += 1
            if outcome not in GOOD or options.show:
                print(f"{name} {number}: {outcome}: {said}", file=sys.stderr, flush=True)
        bad += sum(counts[outcome] for outcome in OUTCOMES if outcome not in GOOD)
        print(f"{name:14}" + "".join(f"{counts[outcome]:13,}" for outcome in OUTCOMES), flush=True)
    print(f"{time.perf_counter() - start:.0f} s; {bad} mutants were not handled well")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
