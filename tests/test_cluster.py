"""On a Dask cluster of two processes: the same lists, scores and images as here, also when one is lost."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from stores import assert_same_lists

import patchindex as pi
from patchindex.build import shards as shards_module
from patchindex.build.scale import ScaleBuild
from patchindex.dask_tasks import lost_workers, submit
from patchindex.errors import InputError, PatchIndexError, StoreError
from patchindex.images import KNOWN_SETS, files

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
# What distributed and its parts warn of among themselves; a warning of this package still fails a test.
pytestmark = pytest.mark.filterwarnings("ignore", "error::patchindex.errors.PatchIndexWarning")


@pytest.fixture(scope="module")
def client():
    with pi.cluster.connect(workers=2, threads=1) as client:
        yield client


@pytest.fixture(scope="module")
def saved(labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=labelled[0], labels=labelled[1])
    return path


def same(there, here, k=3):
    assert_same_lists(pi.open_index(there), pi.open_index(here), k)


def test_a_build_has_the_same_lists(client, saved, tmp_path):
    there = pi.build_index(saved, tmp_path / "there.zarr", scales=[3, 5], threads=1, client=client)
    here = pi.build_index(saved, tmp_path / "here.zarr", scales=[3, 5], threads=1)
    for k in (3, 5):
        same(there.path, here.path, k)
    assert there.attributes["fingerprint"] == here.attributes["fingerprint"]
    assert pi.verify(there.path).whole


@pytest.mark.parametrize("stage", ["train", "merge"])
def test_a_build_survives_the_loss_of_a_worker_at_a_stage_of_one(saved, tmp_path, stage):
    """The process is killed when it has done all the work, and before that is written down."""
    path, killed = tmp_path / "s.zarr", tmp_path / "killed"
    with pi.cluster.connect(workers=2, threads=1) as client:
        client.run(_dies_once, stage, killed)
        pi.build_index(saved, path, scales=[3], threads=1, client=client)
    assert killed.exists()
    same(path, pi.build_index(saved, tmp_path / "here.zarr", scales=[3], threads=1).path)
    assert pi.verify(path).whole


def _dies_once(stage, killed):
    real = getattr(ScaleBuild, f"_{stage}")

    def die(self, *arguments):
        real(self, *arguments)
        killed.touch(exist_ok=False)  # by the first; another that comes here is not killed
        os.kill(os.getpid(), signal.SIGKILL)

    def work(self, *arguments):
        return real(self, *arguments) if killed.exists() else die(self, *arguments)

    setattr(ScaleBuild, f"_{stage}", work)


def test_a_task_that_raises_is_not_tried_again(saved, tmp_path):
    with pi.cluster.connect(workers=1, threads=1) as client:
        client.run(_raises, tmp_path / "tries")
        with pytest.raises(MemoryError, match="always"):
            pi.build_index(saved, tmp_path / "s.zarr", scales=[3], threads=1, client=client)
    assert (tmp_path / "tries").read_text() == "1"


def _raises(tries):
    def fail(self, *_):
        with tries.open("a") as file:
            file.write("1")
        raise MemoryError("always")

    ScaleBuild._train = fail


def test_a_build_that_loses_all_its_workers_says_so_and_resumes(saved, tmp_path):
    path, built = tmp_path / "s.zarr", tmp_path / "built.zarr"
    pi.build_index(saved, built, scales=[3], threads=1)
    fewer = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with fewer, pi.cluster.connect(workers=2, threads=1) as client:
        client.register_plugin(_Dying())
        with pytest.raises(PatchIndexError, match=r"lost with each of 2 workers.*resume=True$") as caught:
            pi.build_index(saved, path, scales=[3], threads=1, client=client)
        with pytest.raises(PatchIndexError, match=r"lost with each of 2 workers.*add the scales again$"):
            pi.add_scales(built, [5], threads=1, client=client)
    assert "\n" not in str(caught.value)
    assert pi.build_index(saved, path, scales=[3], threads=1, resume=True).scales == (3,)
    assert pi.add_scales(built, [5], threads=1).scales == (3, 5)


class _Dying(distributed.WorkerPlugin):
    """Kills every worker that trains."""

    def setup(self, worker):
        ScaleBuild._train = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_after_the_cluster_was_shut_down_is_raised():
    def fail():
        with pi.cluster.connect(workers=1, threads=1) as client:
            client.shutdown()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()


def test_cancelled_tasks_are_reported(client):
    future = submit(client, time.sleep, 1)
    client.cancel([future])
    with pytest.raises(PatchIndexError, match=r"cancelled.*and draw again"), lost_workers("draw again"):
        future.result()


def test_a_worker_that_takes_the_place_of_another_has_as_many_threads():
    with pi.cluster.connect(workers=1, threads=3) as client:
        before = client.submit(os.getpid, pure=False).result()
        os.kill(before, signal.SIGKILL)
        assert client.submit(torch.get_num_threads, pure=False).result() == 3
        assert client.submit(os.getpid, pure=False).result() != before
    with (
        pytest.raises(InputError, match="threads: applies to local clusters only"),
        pi.cluster.connect("tcp://127.0.0.1:1", threads=3),
    ):
        pass


def test_a_build_survives_the_loss_of_a_worker(saved, tmp_path, monkeypatch):
    """The process is killed before it writes the fourth of many shards."""
    path, killed = tmp_path / "s.zarr", tmp_path / "killed"
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 2000)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    with pi.cluster.connect(workers=2, threads=1) as client:
        client.run(_small_shards)
        client.register_worker_callbacks(_small_shards)  # for the process that takes the lost one's place
        client.run(_dies_at_a_shard, killed)
        there = pi.build_index(saved, path, scales=[3], threads=1, client=client)
    assert killed.exists()
    same(there.path, pi.build_index(saved, tmp_path / "here.zarr", scales=[3], threads=1).path)
    assert pi.verify(path).whole


def _small_shards():
    shards_module.SHARD_BYTES, shards_module.PIECE_BYTES = 2000, 0


def _dies_at_a_shard(killed):
    write = shards_module.Shards.write

    def work(self, i, *arguments):
        if i == 3 and not killed.exists():  # the next worker that encodes this shard is not killed
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, i, *arguments)

    shards_module.Shards.write = work


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("k", [3, 7])
def test_exact_scores_are_merged_from_shards(client, saved, held_out, k, label):
    shards = pi.cluster.ImageShards(client, saved, images=7)
    x = held_out(0.4)
    shares = []
    there = pi.ScoreMachine(saved, estimator="exact", shards=shards).posterior_mean(
        x, 0.4, k=k, label=label, progress=lambda _, done, total: shares.append(done / total)
    )
    here = pi.ScoreMachine(saved, estimator="exact").posterior_mean(x, 0.4, k=k, label=label)
    # Sums of the same float32 tiles, in another order.
    torch.testing.assert_close(there.mean, here.mean, rtol=0, atol=1e-6)
    assert there.patches_evaluated == here.patches_evaluated
    assert shares[-1] == 1


def test_exact_scores_survive_the_loss_of_a_worker(saved, held_out):
    x = held_out(0.4)
    with pi.cluster.connect(workers=2, threads=1) as client:
        shards = pi.cluster.ImageShards(client, saved, images=5)
        machine = pi.ScoreMachine(saved, estimator="exact", shards=shards)
        before = machine.posterior_mean(x, 0.4, k=3).mean
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)  # with the shards that it held
        after = machine.posterior_mean(x, 0.4, k=3).mean
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_shards_by_relative_paths(client, labelled, held_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    np.save("images.npy", labelled[0])
    np.save("labels.npy", labelled[1])
    shards = pi.cluster.ImageShards(client, "images.npy", "labels.npy")
    machine = pi.ScoreMachine("images.npy", "labels.npy", estimator="exact", shards=shards)
    here = pi.ScoreMachine(*labelled, estimator="exact")
    x = held_out(0.4)
    torch.testing.assert_close(machine(x, 0.4, k=3, label=4), here(x, 0.4, k=3, label=4), rtol=0, atol=1e-5)


def test_shards_of_several_files(client, saved, held_out):
    both = [saved, str(saved)]
    machine = pi.ScoreMachine(both, estimator="exact", shards=pi.cluster.ImageShards(client, both))
    here = pi.ScoreMachine(both, estimator="exact")
    x = held_out(0.4)
    torch.testing.assert_close(machine(x, 0.4, k=3), here(x, 0.4, k=3), rtol=0, atol=1e-5)


def test_shards_of_other_images_are_refused(client, saved, labelled, tmp_path):
    images, labels = labelled
    inverted, turned = tmp_path / "inverted.npy", tmp_path / "turned.npz"
    np.save(inverted, 255 - images)
    np.savez(turned, images=images[::-1], labels=labels[::-1])
    for source, given, what in (
        (inverted, labels, "images"),
        (saved, 1 - labels, "labels"),
        (turned, None, "source_ids"),
    ):
        shards = pi.cluster.ImageShards(client, source, given)
        with pytest.raises(InputError, match=f"shards: have other {what} than"):
            pi.ScoreMachine(saved, estimator="exact", shards=shards)
    store = pi.build_index(saved, tmp_path / "s.zarr", machine="IS").path
    pi.ScoreMachine(saved, machine="IS", shards=pi.cluster.ImageShards(client, store))
    for name, value in {"labels": labels, "limit": 5}.items():
        with pytest.raises(InputError, match=f"{name}: is fixed in the store"):
            pi.cluster.ImageShards(client, store, **{name: value})


def test_shards_are_refused_where_no_worker_would_compute(client, saved, held_out, tmp_path):
    index = pi.build_index(saved, tmp_path / "s.zarr", scales=[3])
    for source, estimator in ((saved, "auto"), (index, "topk")):
        shards = pi.cluster.ImageShards(client, saved)
        with pytest.raises(InputError, match=f"shards: {estimator} gives no work to the workers"):
            pi.ScoreMachine(source, estimator=estimator, shards=shards)
    stages, shards = [], pi.cluster.ImageShards(client, saved, images=20)
    auto = pi.ScoreMachine(index, estimator="auto", shards=shards)
    auto.exact().posterior_mean(held_out(0.4), 0.4, k=3, progress=lambda *report: stages.append(report[:2]))
    assert len(stages) == 2  # one for each shard


def test_shards_of_a_store_that_is_damaged_are_refused(client, saved, held_out, tmp_path):
    store = pi.build_index(saved, tmp_path / "s.zarr", machine="LS").path
    shards = pi.cluster.ImageShards(client, store, images=7)
    machine = pi.ScoreMachine(saved, machine="LS", estimator="exact", shards=shards)
    machine.posterior_mean(held_out(0.4), 0.4, k=3)
    with (store / "images" / "c" / "0" / "0" / "0" / "0").open("r+b") as file:
        file.write(bytes(500))
    with pytest.raises(StoreError, match="images 0 to 39 are damaged"):
        pi.cluster.ImageShards(client, store)
    there = pi.cluster._Source("other", str(store), None, {}, {})
    with pytest.raises(StoreError, match="images 0 to 39 are damaged"):
        client.submit(pi.cluster._read, there, 0, 7).result()


def test_a_worker_opens_images_once_and_as_they_are_here(client, labelled, tmp_path, monkeypatch):
    from PIL import Image

    for i, image in enumerate(labelled[0][:12, :, :, 0]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    client.run(_count_openings)
    shards = pi.cluster.ImageShards(client, tmp_path, images=1, skip_bad=True)
    machine = pi.ScoreMachine(tmp_path, estimator="exact", shards=shards)
    machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.4, k=3)
    # Of 12 files: their headers and contents at opening, those that sets are told apart by, and the shards.
    assert sum(client.run(_openings).values()) <= 12 * (2 * 3 + 1)

    real = files.Folder.open

    def one_is_refused(self, name):
        if name == "03.png":
            raise PermissionError(name)
        return real(self, name)

    with monkeypatch.context() as refused:
        refused.setattr(files.Folder, "open", one_is_refused)
        shards = pi.cluster.ImageShards(client, tmp_path, skip_bad=True)
        machine = pi.ScoreMachine(pi.open_images(tmp_path, skip_bad=True), estimator="exact", shards=shards)
    with pytest.raises(PatchIndexError, match=r"a worker finds other images \(shape\)"):
        machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.4, k=3)


def _count_openings():
    real, files.opened = files.Folder.open, 0

    def open(self, name):
        files.opened += 1
        return real(self, name)

    files.Folder.open = open


def _openings():
    return files.opened


def test_urls_and_known_sets_are_no_paths(client, saved, tmp_path, monkeypatch):
    store = pi.build_index(saved, tmp_path / "s.zarr", locality=[3, 3, 5], threads=1).path
    monkeypatch.setenv("PATCHINDEX_CACHE", str(tmp_path / "cache"))
    client.run(os.environ.update, {"PATCHINDEX_CACHE": str(tmp_path / "cache")})
    url, way = f"file://{store}", {"estimator": "topk"}
    there = pi.cluster.sample(client, url, 2, steps=3, batch_size=1, **way)
    here = pi.sample(pi.ScoreMachine(store, **way), n=2, steps=3)
    torch.testing.assert_close(there.images, here.images, rtol=0, atol=1e-4)
    shards = pi.cluster.ImageShards(client, url)
    machine = pi.ScoreMachine(store, estimator="exact", shards=shards)
    assert machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.4).mean.shape == (1, 1, 14, 14)
    monkeypatch.setitem(KNOWN_SETS, "fashion-mnist", (tmp_path / "none.gz", "get it"))
    with pytest.raises(InputError, match="fashion-mnist: this known set is not installed; get it"):
        pi.cluster.ImageShards(client, "fashion-mnist")


def test_shards_of_images_of_one_row_are_read(client, tmp_path):
    """One row looks like one channel."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 10, 1), np.uint8)
    np.save(tmp_path / "rows.npy", pixels)
    source, x = pi.open_images(tmp_path / "rows.npy", axes="NHWC"), torch.zeros(1, 1, 1, 10)
    shards = pi.cluster.ImageShards(client, tmp_path / "rows.npy", images=5, axes="NHWC")
    there, here = (
        pi.ScoreMachine(source, machine="LS", estimator="exact", locality=3, shards=each)
        for each in (shards, None)
    )
    torch.testing.assert_close(there.posterior_mean(x, 0.4).mean, here.posterior_mean(x, 0.4).mean)


def test_samples_are_those_that_are_drawn_here(client, saved, tmp_path):
    store = pi.build_index(saved, tmp_path / "s.zarr", locality=[3, 3, 5], threads=1).path
    way = {"estimator": "topk", "candidates": 50}
    there = pi.cluster.sample(client, store, 5, steps=4, seed=2, batch_size=2, **way)
    here = pi.sample(pi.ScoreMachine(store, **way), n=5, steps=4, seed=2)
    assert torch.equal(there.x_T, here.x_T)
    torch.testing.assert_close(there.images, here.images, rtol=0, atol=1e-4)  # as `sample` promises
    assert len(there.steps) == 3 * 3
    assert there.settings["n"] == 5


def test_bad_arguments_are_refused(client, labelled, saved):
    with pytest.raises(InputError, match="workers need a path"):
        pi.cluster.ImageShards(client, labelled[0])
    shards = pi.cluster.ImageShards(client, saved, limit=20)
    with pytest.raises(InputError, match=r"shards: have shape \(20, 14, 14, 1\)"):
        pi.ScoreMachine(saved, estimator="exact", shards=shards)
    with pytest.raises(InputError, match="images: must be at least 1"):
        pi.cluster.ImageShards(client, saved, images=0)
    with pytest.raises(InputError, match="batch_size: must be at least 1"):
        pi.cluster.sample(client, saved, 1, batch_size=0)
    with pytest.raises(InputError, match="workers: must be at least 1"), pi.cluster.connect(workers=0):
        pass
    with pytest.raises(InputError, match="no scheduler answers"), pi.cluster.connect("tcp://127.0.0.1:1"):
        pass


def test_a_comparison_has_the_same_results(client, saved, tmp_path):
    store = pi.build_index(saved, tmp_path / "s.zarr", machine="IS", threads=1).path
    options = pi.study.TheoryOptions(steps=4, network_steps=5, along=2, noised=2, batch_size=1)
    network = pi.denoiser("wiener", store)

    def compare(**how):
        denoisers = {name: pi.denoiser(name, store, locality=[3, 5]) for name in ("ELS", "pspc")}
        return pi.study.theory(network, denoisers, 3, options=options, **how)

    there, here = compare(client=client), compare()
    for mine, other in ((there.images, here.images), (there.points, here.points)):
        assert len(mine) == len(other) > 0
        for row, reference in zip(mine, other, strict=True):
            row, reference = ({k: v for k, v in each.items() if k != "seconds"} for each in (row, reference))
            assert row == pytest.approx(reference, abs=1e-4, nan_ok=True)
