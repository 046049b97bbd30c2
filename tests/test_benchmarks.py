"""Every benchmark script still fits the package: it imports, and says what it does."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.sampling import draw_noise

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LINUX_ONLY = {"gpu_instructions": "triton"}  # what a script imports that other systems lack


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_imports(script, monkeypatch):
    if script.stem in LINUX_ONLY:
        pytest.importorskip(LINUX_ONLY[script.stem])
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    assert runpy.run_path(str(script))["__doc__"]
    for name in set(sys.modules) - before:  # a later test may have a module of this name
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def test_the_page_of_benchmarks_is_its_template_with_outputs(monkeypatch):
    """Nobody has written a figure into the page by hand, at least not beside the template."""
    monkeypatch.syspath_prepend(str(FOLDER))
    pattern, last = "", 0
    page = runpy.run_path(str(FOLDER / "page.py"))
    template = page["TEMPLATE"].read_text()
    for block in page["RUN"].finditer(template):
        shown = "".join(f"    {line}\n" for line in block["commands"].splitlines())
        pattern += re.escape(template[last : block.start()] + shown)
        pattern += r"\n(```text\n(?:(?!```).)+```|\*Not run[^\n]*)\n"
        last = block.end()
    pattern = (pattern + re.escape(template[last:])).replace("MACHINE", r"[^\n]+", 1)
    found = re.fullmatch(pattern, page["PAGE"].read_text(), re.DOTALL)
    assert found, "run `make bench` again, or make equal changes in docs/benchmarks.md and benchmarks/page.md"


@pytest.fixture
def script(monkeypatch):
    """Return a script's functions and constants by name, in a dict that its functions read, too."""

    def load(name):
        monkeypatch.syspath_prepend(str(FOLDER))
        before = set(sys.modules)
        found = runpy.run_path(str(FOLDER / f"{name}.py"))
        for new in set(sys.modules) - before:
            if Path(getattr(sys.modules[new], "__file__", None) or "").parent == FOLDER:
                del sys.modules[new]
        return found["main"].__globals__

    return load


def test_the_page_runs_commands_and_keeps_outputs(tmp_path, monkeypatch, script):
    page = script("page")
    monkeypatch.setitem(page, "commit", lambda: "abc")
    command = "python -c \"import sys; print('found', sys.argv[1])\" WORK/a"
    inputs = page["Inputs"](CIFAR10=None, AUTHORS=None, WORK=tmp_path)
    assert page["output_of"]("name", [command], inputs) == "found WORK/a\n"
    (kept,) = tmp_path.glob("name-*.txt")
    kept.write_text("kept\n")
    assert page["output_of"]("name", [command], inputs) == "kept\n"
    assert page["output_of"]("name", [command + "b"], inputs) == "found WORK/ab\n"
    with pytest.raises(SystemExit, match="exit code 3 of: python"):
        page["output_of"]("name", ['python -c "raise SystemExit(3)"'], inputs)
    assert inputs.missing("python benchmarks/exact.py CIFAR10 --work WORK") == ["CIFAR10"]


def test_outputs_of_changed_files_are_neither_kept_nor_reused(tmp_path, monkeypatch, script):
    page = script("page")
    inputs = page["Inputs"](CIFAR10=None, AUTHORS=None, WORK=tmp_path)
    monkeypatch.setitem(page, "commit", lambda: "abc+")
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        found = page["output_of"]("name", ["python -c \"print(open('WORK/a').read())\""], inputs)
        assert found == f"{text}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("only", [[], ["--only", "none"]])
def test_plots_go_beside_the_page_when_it_is_whole(tmp_path, monkeypatch, script, only):
    page = script("page")
    plot = "python -c \"open('WORK/new.png', 'w').write('new')\""
    (tmp_path / "page.md").write_text(f"MACHINE\n\n```run plot\n{plot}\n```\n\n![A plot](new.png)\n")
    work, docs = tmp_path / "work", tmp_path / "docs"
    docs.mkdir()
    (docs / "new.png").write_text("old")
    for name, value in (("TEMPLATE", tmp_path / "page.md"), ("PAGE", docs / "page.md")):
        monkeypatch.setitem(page, name, value)
    monkeypatch.setattr(sys, "argv", ["page.py", "--work", str(work), *only])
    page["main"]()
    assert (docs / "new.png").read_text() == ("old" if only else "new")
    assert (docs / "page.md").exists() == (not only)
    assert (work / "benchmarks.md").exists() == bool(only)


def test_an_output_whose_plot_was_drawn_again_is_not_taken(tmp_path, monkeypatch, script):
    page = script("page")
    monkeypatch.setitem(page, "commit", lambda: "abc")
    draw = "import sys; open(sys.argv[2], 'w').write('plot'); print('drawn')"
    command, plot = f'python -c "{draw}" --plot WORK/new.png', tmp_path / "new.png"
    inputs = page["Inputs"](CIFAR10=None, AUTHORS=None, WORK=tmp_path)
    assert page["output_of"]("name", [command], inputs) == "drawn\n"
    (kept,) = tmp_path.glob("name-*.txt")
    kept.write_text("kept\n")
    assert page["output_of"]("name", [command], inputs) == "kept\n"
    os.utime(plot, ns=(0, kept.stat().st_mtime_ns + 1))
    assert page["output_of"]("name", [command], inputs) == "drawn\n"
    plot.unlink()
    assert page["output_of"]("name", [command], inputs) == "drawn\n"
    assert plot.read_text() == "plot"


def test_the_commands_of_the_page_write_to_the_work_folder_only(script):
    page = script("page")
    template = page["TEMPLATE"].read_text()
    commands = " ".join(block["commands"] for block in page["RUN"].finditer(template))
    plots = re.findall(r"--plot (\S+)", commands)
    assert plots == [f"WORK/{name}" for name in page["IMAGE"].findall(template)]
    assert "docs/" not in commands


class Clock:
    """A clock that a fake call moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter


def test_exact_images_come_first_in_each_round_of_the_ratio(tmp_path, monkeypatch, script):
    cifar10, clock, calls = script("cifar10"), Clock(), []
    noise = draw_noise(0, 2, (1, 8, 8))
    np.savez(tmp_path / "finals.npz", seeds=[0, 1], x_T=noise, images=noise)
    seconds = {("exact", 1): iter([10, 30]), ("auto", 2): iter([4, 6]), ("topk", 2): iter([20, 20])}

    def sample(way, *, x_T, steps):
        calls.append((way, len(x_T), steps))
        if (way, len(x_T), steps) not in warm:
            clock.now += next(seconds[way, len(x_T)])
        return SimpleNamespace(images=x_T)

    warm = [("exact", 1, 2), ("auto", 1, 20), ("topk", 1, 20)]
    monkeypatch.setitem(cifar10, "FINALS", tmp_path / "finals.npz")
    monkeypatch.setitem(cifar10, "pi", SimpleNamespace(sample=sample))
    monkeypatch.setitem(cifar10["alternate"].__globals__, "time", clock)
    rows = cifar10["images"]({"auto": "auto", "exact": "exact", "topk": "topk"}, 2)
    assert calls == [*warm, *[("exact", 1, 20), ("auto", 2, 20), ("topk", 2, 20)] * 2]
    assert [row["way"] for row in rows] == ["exact", "auto", "auto", "topk", "topk"]
    assert [row["s per image"] for row in rows] == [20, 2.5, 2.5, 10, 10]
    # The median of 10 / 2 and 30 / 3, and of 10 / 10 and 30 / 10.
    assert [row["exact / it"] for row in rows] == [1, 7.5, 7.5, 2, 2]


def test_images_of_few_patches_are_drawn_in_rounds(tmp_path, monkeypatch, script, real_images):
    cifar10, noise = script("cifar10"), draw_noise(0, 2, (1, 8, 8))
    machine = pi.ScoreMachine(real_images(12, 8)[0], locality=3, estimator="exact", threads=1)
    monkeypatch.setitem(cifar10, "STEPS", 3)
    images = pi.sample(machine, x_T=noise, steps=3).images + 0.1
    np.savez(tmp_path / "finals.npz", seeds=[0, 1], x_T=noise, images=images)
    monkeypatch.setitem(cifar10, "FINALS", tmp_path / "finals.npz")
    rows = cifar10["images"]({"exact:engine=offsets": machine, "exact": machine}, 2)
    assert [(row["way"], row["seed"]) for row in rows] == [
        ("exact", 0), ("exact:engine=offsets", 0), ("exact:engine=offsets", 1),
    ]  # fmt: skip
    assert [row["rmse"] for row in rows] == pytest.approx([0.1] * 3, abs=1e-4)
    assert rows[0]["exact / it"] == 1
    cifar10["plot"](rows, tmp_path / "plot.png")


def test_the_soak_stops_if_it_draws_no_estimates(monkeypatch, script):
    soak, made = script("soak"), []

    def sample(machine, n, steps, *, seed, first):
        step = {"images": n, "exact_pixels": exact * n * 64}
        return SimpleNamespace(images=torch.zeros(n, 1, 8, 8), steps=[step] * (steps - 1))

    def machine(path, **options):
        made.append(options)

    monkeypatch.setitem(soak, "pi", SimpleNamespace(sample=sample, ScoreMachine=machine))
    exact = 0.25
    rows = soak["draw"]("store", 30, 5)
    assert [(row["images"], row["exact"]) for row in rows] == [(10, 0.25), (20, 0.25), (30, 0.25)]
    assert all(row["rss"] > 0 for row in rows)
    assert made == [{"estimator": "auto", "probes": 64, "candidates": 256, "tolerance": 0.05}]
    exact = 0.75
    with pytest.raises(SystemExit, match="auto computed 75% of the pixels exactly, more than 50%"):
        soak["draw"]("store", 30, 5)
