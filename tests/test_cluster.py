"""On a Dask cluster of two processes: the same lists, scores and images as here, also when one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchindex_cli import main

import patchindex as pi
from patchindex.errors import InputError
from patchindex.index import shards as shards_module
from patchindex.index.stages import ScaleBuild

pytest.importorskip("distributed")
# What distributed and its parts warn of among themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def client():
    with pi.cluster.connect(workers=2, threads=1) as client:
        yield client


@pytest.fixture(scope="module")
def saved(labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=labelled[0], labels=labelled[1])
    return path


def test_a_build_has_the_same_lists(client, saved, tmp_path):
    there = pi.build_index(saved, tmp_path / "there.zarr", scales=[3, 5], threads=1, client=client)
    here = pi.build_index(saved, tmp_path / "here.zarr", scales=[3, 5], threads=1)
    for k in (3, 5):
        for (_, ids, codes), (_, same_ids, same_codes) in zip(
            there.scale(k).members(), here.scale(k).members(), strict=True
        ):
            np.testing.assert_array_equal(ids, same_ids)
            np.testing.assert_array_equal(codes, same_codes)
    assert there.attributes["fingerprint"] == here.attributes["fingerprint"]
    assert pi.verify(there.path).whole


def test_a_build_survives_the_loss_of_a_worker(saved, tmp_path, monkeypatch):
    """One process is killed while shards are encoded; more shards than usual, so that it is at one."""
    path = tmp_path / "s.zarr"
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 2000)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    with pi.cluster.connect(workers=2, threads=1) as client:
        client.run(_small_shards)
        client.register_worker_callbacks(_small_shards)  # for the process that takes the lost one's place
        pids = list(client.run(os.getpid).values())
        killed = []

        def kill():
            folder = path.with_name("s.zarr.building") / "scales" / "k003.tmp" / "shards"
            while not (folder.exists() and len(list(folder.glob("0*"))) > 2):
                time.sleep(0.005)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        there = pi.build_index(saved, path, scales=[3], threads=1, client=client)
        thread.join(30)
    assert killed
    here = pi.build_index(saved, tmp_path / "here.zarr", scales=[3], threads=1)
    for (_, ids, codes), (_, same_ids, same_codes) in zip(
        there.scale(3).members(), here.scale(3).members(), strict=True
    ):
        np.testing.assert_array_equal(ids, same_ids)
        np.testing.assert_array_equal(codes, same_codes)
    assert pi.verify(path).whole


def _small_shards():
    shards_module.SHARD_BYTES, shards_module.PIECE_BYTES = 2000, 0


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("k", [3, 7])
def test_exact_scores_are_merged_from_shards(client, saved, held_out, k, label):
    shards = pi.cluster.ImageShards(client, saved, images=7)
    x = held_out(0.4)
    told = []
    there = pi.ScoreMachine(saved, estimator="exact", shards=shards).posterior_mean(
        x, 0.4, k=k, label=label, progress=told.append
    )
    here = pi.ScoreMachine(saved, estimator="exact").posterior_mean(x, 0.4, k=k, label=label)
    # Sums of the same float32 tiles, in another order.
    torch.testing.assert_close(there.mean, here.mean, rtol=0, atol=1e-6)
    assert there.patches_evaluated == here.patches_evaluated
    assert told[-1] == 1


def test_exact_scores_survive_the_loss_of_a_worker(saved, held_out):
    x = held_out(0.4)
    with pi.cluster.connect(workers=2, threads=1) as client:
        shards = pi.cluster.ImageShards(client, saved, images=5)
        machine = pi.ScoreMachine(saved, estimator="exact", shards=shards)
        before = machine.posterior_mean(x, 0.4, k=3).mean
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)  # with the shards that it held
        after = machine.posterior_mean(x, 0.4, k=3).mean
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_samples_are_those_that_are_drawn_here(client, saved, tmp_path):
    store = pi.build_index(saved, tmp_path / "s.zarr", locality=[3, 3, 5], threads=1).path
    way = {"estimator": "priority", "blocks": 20, "samples": 50}
    there = pi.cluster.sample(client, store, 5, steps=4, seed=2, batch_size=2, **way)
    here = pi.sample(pi.ScoreMachine(store, **way), n=5, steps=4, seed=2)
    assert torch.equal(there.x_T, here.x_T)
    torch.testing.assert_close(there.images, here.images, rtol=0, atol=1e-4)  # as `sample` promises
    assert len(there.steps) == 3 * 3
    assert there.settings["n"] == 5


def test_what_cannot_be_done_is_told(client, labelled, saved):
    with pytest.raises(InputError, match="workers need a path"):
        pi.cluster.ImageShards(client, labelled[0])
    shards = pi.cluster.ImageShards(client, saved, limit=20)
    with pytest.raises(InputError, match=r"shards: are of shape \(20, 14, 14, 1\)"):
        pi.ScoreMachine(saved, estimator="exact", shards=shards)
    with pytest.raises(InputError, match="no scheduler answers"), pi.cluster.connect("tcp://127.0.0.1:1"):
        pass


def test_a_build_travels_as_what_it_was_made_of(saved, tmp_path):
    import pickle

    store = pi.build_index(saved, tmp_path / "s.zarr", scales=[3])
    scale = ScaleBuild(store.path, store.geometry(3), 8, 10, 0, torch.device("cpu"), "it")
    assert len(pickle.dumps(scale)) < 5000
    assert pickle.loads(pickle.dumps(scale)).finished


@pytest.mark.parametrize("stage", ["train", "merge"])
def test_a_stage_that_two_processes_are_at_is_done_once(saved, tmp_path, monkeypatch, stage):
    store = pi.build_index(saved, tmp_path / "s.zarr", scales=[3], threads=1)
    shutil.rmtree(store.path / "scales")
    what = store.path, store.geometry(3), 8, 10, 0, torch.device("cpu"), "it"
    scale = ScaleBuild(*what)
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

    def work(scale):  # as a worker that was given up, and the one that has its task now
        both.wait()
        getattr(scale, stage)()

    monkeypatch.setattr(ScaleBuild, f"_{stage}", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [ScaleBuild(*what), ScaleBuild(*what)]))
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    scale = ScaleBuild(*what)
    assert scale.finished == (stage == "merge")
    assert bool(scale.missing()) == (stage == "train")


def test_a_build_at_the_command_line(saved, tmp_path):
    command = (
        "build",
        saved,
        "-o",
        tmp_path / "s.zarr",
        "--scales",
        "3",
        "--no-calibrate",
        "--cluster",
        "local",
    )
    done = CliRunner().invoke(main, list(map(str, command)))
    assert done.exit_code == 0, done.output
    assert pi.verify(tmp_path / "s.zarr").whole
