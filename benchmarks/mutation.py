r"""Mutation testing: change one operator, number or comparison at a time, and list what no test finds.

    pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py patchindex/softmax.py --log softmax.jsonl --jobs 2

cosmic-ray makes the mutants of a module. Each mutant replaces the module in a forked process that runs the
tests of the module, the files in `TESTS`, until the first failure. A mutant is killed by a failure or a hang.
Mutants of type annotations are left out: no test can see them. The script prints each survivor with its line,
and the share that was killed. Results are appended to the log, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
ESTIMATORS, STORE = "tests/estimators", "tests/store"
COSTS = [f"{ESTIMATORS}/test_costs.py"]
# The fastest tests that must kill the mutants of a module.
TESTS = {
    "patchindex/softmax.py": ["tests/test_softmax.py"],
    "patchindex/geometry.py": ["tests/test_geometry.py", "tests/test_geometry_windows.py"],
    "patchindex/estimators/base.py": [f"{ESTIMATORS}/test_topk.py", f"{ESTIMATORS}/test_edges.py"],
    "patchindex/estimators/exact.py": [f"{ESTIMATORS}/test_exact.py"],
    "patchindex/estimators/topk.py": [f"{ESTIMATORS}/test_topk.py", f"{ESTIMATORS}/test_edges.py"],
    "patchindex/estimators/auto.py": [*COSTS, f"{ESTIMATORS}/test_auto.py", f"{ESTIMATORS}/test_edges.py"],
    "patchindex/estimators/near.py": [
        f"{ESTIMATORS}/test_near_field.py",
        *COSTS,
        f"{ESTIMATORS}/test_auto.py",
    ],
    "patchindex/estimators/neighbours.py": [f"{ESTIMATORS}/test_near_field.py", *COSTS],
    "patchindex/estimators/curve.py": [f"{ESTIMATORS}/test_curve.py", f"{ESTIMATORS}/test_auto.py"],
    "patchindex/estimators/policy.py": [f"{ESTIMATORS}/test_curve.py", *COSTS, f"{ESTIMATORS}/test_auto.py"],
    "patchindex/estimators/registry.py": [
        f"{ESTIMATORS}/test_edges.py",
        f"{ESTIMATORS}/test_sampled_auto.py",
    ],
    "patchindex/estimators/sampled.py": [
        f"{ESTIMATORS}/test_sampled_auto.py",
        *COSTS,
        f"{ESTIMATORS}/test_auto.py",
    ],
    "patchindex/store/atomic.py": [f"{STORE}/test_atomic.py"],
    "patchindex/store/raw.py": [f"{STORE}/test_raw.py", "tests/index/test_verify.py"],
    "patchindex/store/checksums.py": [
        f"{STORE}/test_checksums.py",
        "tests/index/test_verify.py",
        f"{STORE}/test_copies.py",
    ],
    "patchindex/store/arrays.py": ["tests/index/test_hostile_stores.py"],
    "patchindex/store/remote.py": [f"{STORE}/test_copies.py", f"{STORE}/test_remote.py"],
}
IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
LEAST_SECONDS = 60  # before a mutant hangs


@dataclass(frozen=True)
class Mutant:
    """A change of a module, by an operator of cosmic-ray, in a line."""

    operator: str
    occurrence: int
    line: int

    @property
    def key(self) -> str:
        """The name of the mutant in the log."""
        return f"{self.operator} {self.occurrence}"

    def apply(self, source: str) -> str:
        """Return the changed source."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(source, get_operator(self.operator)(), self.occurrence) or source


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield the mutants of a source, in the order of cosmic-ray's operators."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    left_out, nodes = annotations(source), list(ast_nodes(get_ast(source)))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            if not any(first <= start < last for first, last in left_out):
                yield Mutant(name, occurrence, start[0])


def difference(before: str, after: str) -> str:
    """Return the lines that differ, without context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return " | ".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the places, (line, column), where the type annotations of a source begin and end."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in found
        if node is not None
    ]


class Replaced(MetaPathFinder, Loader):
    """An importer that takes the source of one module from memory."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the place of the module."""
        return spec_from_loader(name, self, origin=str(self._path)) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the source of the module."""
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


def start(module: str, source: str, tests: list[str], seconds: float) -> int:
    """Start a process that runs the tests with another source of the module; return its number.

    It exits with 0 when all tests pass.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    signal.alarm(int(seconds))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    failed = True
    try:
        import pytest

        name = module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Replaced(name, ROOT / module, source))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", IMPORTED]
        failed = pytest.main([*options, *tests]) != 0
    finally:
        os._exit(failed)


def outcome(status: int) -> str:
    """Return the outcome of a process."""
    if os.WIFSIGNALED(status):
        return "hang" if os.WTERMSIG(status) == signal.SIGALRM else "signal"
    return "killed" if os.WEXITSTATUS(status) else "survived"


def main() -> int:
    """Run the mutants of a module, and print the survivors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--log", type=Path, required=True, help="file of results, one JSON object per line")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--every", type=int, default=1, help="run one of so many mutants")
    parser.add_argument("--most", type=int, help="run at most this number of mutants")
    parser.add_argument("--lines", help="run mutants of these lines of the module, such as 20-30")
    args = parser.parse_args()
    import h5py  # noqa: F401
    import numba  # noqa: F401  (what all children import is imported once, here)
    import torch  # noqa: F401
    import zarr  # noqa: F401

    os.chdir(ROOT)
    source, tests = (ROOT / args.module).read_text(), TESTS[args.module]
    first, _, last = (args.lines or f"1-{source.count(chr(10)) + 1}").partition("-")
    every = [mutant for mutant in mutants_of(source) if int(first) <= mutant.line <= int(last or first)]
    chosen = every[:: args.every][: args.most]
    began = time.perf_counter()
    if outcome(os.waitpid(start(args.module, source, tests, 3600), 0)[1]) != "survived":
        print("the tests fail without any change")
        return 1
    seconds = max(LEAST_SECONDS, 5 * (time.perf_counter() - began))
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    # Survivors run again: there may be new tests.
    known = {
        entry["key"]: entry
        for entry in map(json.loads, lines)
        if entry["source"] == hash_of(source) and entry["outcome"] != "survived"
    }
    todo = [mutant for mutant in chosen if mutant.key not in known]
    print(f"{args.module}: {len(every)} mutants, {len(todo)} to run, tests take {seconds / 5:.0f} s")
    running: dict[int, tuple[Mutant, str]] = {}
    with args.log.open("a") as log:
        while todo or running:
            while todo and len(running) < args.jobs:
                mutant = todo.pop(0)
                changed = mutant.apply(source)
                running[start(args.module, changed, tests, seconds)] = mutant, difference(source, changed)
            child, status = os.wait()
            mutant, change = running.pop(child)
            entry = {"key": mutant.key, "outcome": outcome(status), "source": hash_of(source)}
            known[mutant.key] = entry
            log.write(json.dumps({**asdict(mutant), **entry, "change": change}) + "\n")
            log.flush()
            if entry["outcome"] == "survived":
                print(f"{args.module}:{mutant.line}: {change}", flush=True)
    counts = Counter(known[mutant.key]["outcome"] for mutant in chosen)
    killed = len(chosen) - counts["survived"]
    print(f"{killed} of {len(chosen)} killed, {100 * killed / len(chosen):.1f} %: {dict(counts)}")
    return 0


def hash_of(source: str) -> str:
    """Return a checksum of a source."""
    import hashlib

    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
