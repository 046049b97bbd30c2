"""The stages of a scale's build, in several processes."""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import patchindex as pi
from patchindex.build import BuildSettings, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.workdir import hold_lock
from patchindex.errors import PatchIndexError


@pytest.fixture
def make(labelled, tmp_path):
    """A function that makes a `ScaleBuild` of scale 3, in a store that has lost its scales."""
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], threads=1)
    shutil.rmtree(store.path / "scales")
    (plan,) = plan_build(store.training.source, BuildSettings([3], pca_dims=8, lists=10))[0].scales

    def make():
        return ScaleBuild(
            store.path, store.geometry(3), plan, seed=0, device=torch.device("cpu"), build_id="a build"
        )

    return make


def test_a_scale_build_is_pickled_without_its_images(make):
    data = pickle.dumps(make())
    assert len(data) < 5000
    scale = pickle.loads(data)
    scale.begin()
    scale.train()
    assert not make().finished
    assert len(make().missing()) == 1


def test_an_error_says_how_the_caller_continues(make):
    for scale, way in (
        (make(), "go on with resume=True"),
        (replace(make(), go_on=["call again"]), "call again"),
    ):
        with pytest.raises(PatchIndexError, match=f"belongs to another build, or to none; {way}$"):
            scale.train()


@pytest.mark.parametrize("stage", ["train", "merge"])
def test_a_stage_that_two_processes_start_runs_once(make, tmp_path, monkeypatch, stage):
    scale = make()
    scale.begin()
    if stage == "merge":
        scale.train()
        for shard in scale.missing():
            scale.encode(shard)
    calls, real, both = [], getattr(ScaleBuild, f"_{stage}"), threading.Barrier(2)

    def slow(self, *arguments):
        calls.append(self)
        time.sleep(0.2)
        return real(self, *arguments)

    def work(scale):
        both.wait()
        getattr(scale, stage)()

    monkeypatch.setattr(ScaleBuild, f"_{stage}", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [make(), make()]))
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    assert make().finished == (stage == "merge")
    assert bool(make().missing()) == (stage == "train")


def test_a_stage_waits_for_a_process_that_is_still_running(make, tmp_path):
    held, release, messages = threading.Event(), threading.Event(), []

    def earlier():
        with hold_lock(tmp_path / "s.zarr.k003.lock", PatchIndexError("is held")):
            held.set()
            release.wait()

    def progress(stage, done, total):
        messages.append(stage)
        release.set()

    worker = threading.Thread(target=earlier)
    worker.start()
    held.wait()
    make().begin(progress)
    worker.join()
    assert messages == ["k = 3: waiting for another process"]


def test_waiting_for_a_lock_ends(tmp_path):
    lock, refused, messages = tmp_path / "lock", PatchIndexError("is held"), []
    with hold_lock(lock, refused):
        for timeout in (0, 0.1):
            with (
                pytest.raises(PatchIndexError, match="is held"),
                hold_lock(lock, refused, timeout=timeout, waiting=lambda: messages.append("waiting")),
            ):
                pass
    assert messages == ["waiting", "waiting"]
    assert not (tmp_path / "lock").exists()
