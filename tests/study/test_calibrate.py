"""`calibrate`: known schedules, brute force, labels, resumption, and what it refuses."""

import csv
import io
import json

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.denoisers import Denoiser
from patchindex.errors import InputError, OutputExistsError
from patchindex.estimators import Estimate
from patchindex.networks.conversions import NoiseTable
from patchindex.sampling import draw_noise
from patchindex.study import Calibration, CalibrationOptions, calibrate
from patchindex.study.calibration import FILES
from patchindex.study.scale_machine import default_scales

SCALES = (3, 5, 7)


class Grey(Denoiser):
    """A denoiser that predicts one grey level."""

    level = 0.25

    def _estimate(self, x, beta, call):
        one = torch.ones_like(x[:, 0])
        return Estimate(torch.full_like(x, self.level), 0 * one, one, one, patches_evaluated=0)


class Coarse(Grey):
    """A denoiser with the noise schedule of a table of four levels."""

    def __init__(self, shape):
        super().__init__(shape, noise=NoiseTable([0.1, 0.3, 0.6, 0.9]))


def without_seconds(result):
    return [
        {name: value for name, value in row.items() if name != "seconds" and value is not None}
        for row in result.rows
    ]


@pytest.mark.parametrize("machine", ["LS", "ELS", "bbELS"])
@pytest.mark.parametrize("measure", ["cosine", "mse"])
def test_a_machine_finds_its_own_schedule(real_images, machine, measure):
    images, _ = real_images(40, 12)
    network = pi.ScoreMachine(images, machine=machine, locality=[3, 3, 5, 3, 7])
    options = CalibrationOptions(measure=measure)
    found = calibrate(images, network, machine, SCALES, n=2, steps=5, options=options)
    # Entry i of the list holds at t = i / 5; the first entry is never used.
    assert [(row["t"], row["k"]) for row in found.summary()] == [(0.2, 3), (0.4, 5), (0.6, 3), (0.8, 7)]
    assert all(row["low"] == row["high"] == row["k"] for row in found.summary())
    assert found.schedule.pairs == network.locality.pairs
    assert max(row["mse"] for row in found.rows if row["k"] == network.scale_at(row["t"])) < 1e-9


def test_the_variances_of_the_schedule_are_those_of_the_network(real_images):
    images, _ = real_images(20, 12)
    network = pi.ScoreMachine(images, machine="LS", locality=5, noise="linear")
    found = calibrate(images, network, "LS", SCALES, n=1, steps=4)
    assert [beta for beta, _ in found.schedule.pairs] == [network.noise(i / 4) for i in (1, 2, 3)]
    assert found.schedule.provenance.noise == "linear"
    assert found.schedule.provenance.image_size == (12, 12)


@pytest.mark.parametrize("machine", ["LS", "ELS", "bbELS"])
@pytest.mark.parametrize("pixels", [None, 9])
def test_similarities_are_those_of_brute_force(real_images, machine, pixels):
    images, _ = real_images(12, 10, channels=3)
    options = CalibrationOptions(seed=3, pixels=pixels)
    found = calibrate(images, Grey((3, 10, 10)), machine, SCALES, n=2, steps=3, options=options)
    noise, beta = draw_noise(3, 2, (3, 10, 10)).double().numpy(), brute.beta_of(2 / 3)
    for row in found.rows:
        if row["step"] == 2:  # the first step sees the noise
            x = noise[row["sample"]]
            truth = brute.posterior_mean(images, x, beta, machine, row["k"])
            chosen = np.ones((10, 10), bool)
            if pixels is not None:
                rng = np.random.default_rng([3, row["sample"], 2, 1])
                chosen = np.isin(np.arange(100), rng.choice(100, pixels, replace=False)).reshape(10, 10)
            ours, theirs = (
                ((1 - beta) ** 0.5 * mean - x)[:, chosen].ravel() for mean in (truth.mean, Grey.level)
            )
            cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
            assert row["cosine"] == pytest.approx(cosine, abs=1e-6)  # float32 posterior means
            assert row["mse"] == pytest.approx(np.square(truth.mean - Grey.level)[:, chosen].mean(), rel=1e-4)
            assert row["ess"] == pytest.approx(truth.ess[chosen].mean(), rel=1e-3)


def test_errors_on_held_out_and_training_images_are_those_of_brute_force(real_images):
    images, _ = real_images(12, 10)
    found = calibrate(images, None, "bbELS", SCALES, n=2, steps=3)
    chosen = found.settings["held_out_ids"]
    others = np.delete(images, chosen, 0)
    for row in found.rows:
        j, i, beta = row["sample"], row["step"], brute.beta_of(row["t"])
        clean = images[chosen[j]].transpose(2, 0, 1) / 127.5 - 1
        eps = np.random.default_rng([0, j, i]).standard_normal(clean.shape, np.float32)
        x = (1 - beta) ** 0.5 * clean + beta**0.5 * eps
        for training, prefix in ((others, ""), (np.concatenate([others, images[[chosen[j]]]]), "train_")):
            truth = brute.posterior_mean(training, x, beta, "bbELS", row["k"])
            # float32 logits: the error of a mean is below 1e-4, also where the squared error is small
            expected = np.square(truth.mean - clean).mean()
            assert row[f"{prefix}mse"] == pytest.approx(expected, rel=1e-2, abs=1e-7)
            assert row[f"{prefix}ess"] == pytest.approx(truth.ess.mean(), rel=1e-2)


def test_held_out_images_of_three_rows_are_compared():
    """Three rows look like channels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 10, 1), np.uint8)
    found = calibrate(pi.open_images(pixels, axes="NHWC"), None, "bbELS", (1, 3), n=1, steps=3)
    assert all(row["train_mse"] < row["mse"] for row in found.rows)


def test_training_images_among_the_held_out_images_are_left_out(real_images):
    images, _ = real_images(30, 10)
    others, _ = real_images(3, 10, skip=500)
    mixed = np.concatenate([images[:20], others])
    found = calibrate(images, None, "LS", SCALES, held_out=mixed, n=3, steps=3)
    assert found.settings["held_out_ids"] == [20, 21, 22]
    with pytest.raises(InputError, match=r"n: is 4, but there are 3 images that are not training images"):
        calibrate(images, None, "LS", SCALES, held_out=mixed, n=4, steps=3)


def test_copies_of_images_that_are_set_aside_are_no_training_images(real_images):
    images, _ = real_images(15, 10)
    found = calibrate(np.concatenate([images, images]), None, "LS", SCALES, n=3, steps=3)
    aside = {number % 15 for number in found.settings["held_out_ids"]}
    assert found.settings["images"] == 2 * (15 - len(aside))
    with pytest.raises(InputError, match="n: leaves no training image: all are equal"):
        calibrate(np.stack([images[0]] * 4), None, "LS", SCALES, n=1, steps=3)


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_replaced_without_asking(name, tmp_path):
    pytest.importorskip("matplotlib")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    found = calibrate(images, Grey((1, 8, 8)), "LS", (3, 5), n=1, steps=2)
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{name}: exists; use another folder, or overwrite=True"):
        found.save(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_held_out_images_may_come_from_another_source(real_images):
    images, _ = real_images(30, 10)
    held_out, _ = real_images(8, 10, skip=500)
    found = calibrate(images, None, "LS", SCALES, held_out=held_out, n=3, steps=3)
    assert found.settings["images"] == 30
    assert len(set(found.settings["held_out_ids"])) == 3
    assert {row["sample"] for row in found.rows} == {0, 1, 2}


def table(way, values, train=None, scales=SCALES, measure="mse"):
    """Return a calibration with some values of its measure, (steps, samples, scales)."""
    values = np.array(values, float)
    train = values if train is None else np.array(train, float)
    rows = [
        {"step": i + 1, "t": 0.1 * (i + 1), "beta": 0.1 * (i + 1), "sample": j, "k": k}
        | {"train_mse": train[i, j, s], measure: values[i, j, s]}
        for i in range(values.shape[0]) for j in range(values.shape[1]) for s, k in enumerate(scales)
    ]  # fmt: skip
    settings = {"way": way, "measure": measure, "scales": list(scales), "ratio": 2.0}
    return Calibration(rows, {**settings, "labels": [None] * values.shape[1]})


def test_a_network_has_the_median_of_its_samples_and_their_quartiles():
    best = [[7, 3, 5, 5], [3, 3, 3, 7], [3, 7, 7, 3]]
    values = [[[float(k == each) for k in SCALES] for each in level] for level in best]
    rows = table("network", values, measure="cosine").summary()
    # The smaller of two middle scales, which is a scale of the grid. Nothing makes k rise with the noise.
    assert [(row["k"], row["low"], row["high"]) for row in rows] == [(5, 3, 5), (3, 3, 3), (3, 3, 7)]
    assert [row["memorises_from"] for row in rows] == [None] * 3


def test_held_out_images_have_the_scale_of_the_least_mean_error():
    rows = table("held-out", [[[3, 2, 9], [3, 2, 9], [1, 9, 9]]]).summary()
    assert (rows[0]["k"], rows[0]["low"], rows[0]["high"]) == (3, 3, 5)
    assert rows[0]["value"] == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("train", "expected"),
    [([8, 8, 8], None), ([8, 8, 1], 7), ([8, 1, 1], 5), ([1, 1, 1], 3), ([1, 8, 1], 7), ([4, 4, 4], None)],
)
def test_a_machine_memorises_from_the_scale_whose_errors_differ_by_the_ratio(train, expected):
    assert table("held-out", [[[8, 8, 8]]], [[train]]).summary()[0]["memorises_from"] == expected


def test_labels_cycle_and_restrict_the_training_images(labelled):
    images, labels = labelled
    machine = pi.ScoreMachine(images, labels, machine="LS", locality=5)
    options = CalibrationOptions(by_label=True, batch_size=3)
    found = calibrate(images, machine, "LS", SCALES, labels=labels, n=4, steps=3, options=options)
    assert found.settings["labels"] == [1, 4, 9, 1]
    assert {row["k"] for row in found.summary()} == {5}
    one = calibrate(
        images[labels == 4], Grey((1, 14, 14)), "LS", SCALES, n=2, steps=2, options=CalibrationOptions()
    )
    grey = Grey((1, 14, 14))
    grey.check_label = lambda label: None
    every = calibrate(images, grey, "LS", SCALES, labels=labels, n=2, steps=2, options=options)
    mine = [row["cosine"] for row in every.rows if row["label"] == 4]
    assert mine == pytest.approx([row["cosine"] for row in one.rows if row["sample"] == 1], abs=1e-9)


def test_held_out_images_are_compared_with_their_own_label(labelled):
    images, labels = labelled
    options = CalibrationOptions(by_label=True)
    found = calibrate(images, None, "LS", SCALES, labels=labels, n=4, steps=2, options=options)
    assert found.settings["labels"] == labels[found.settings["held_out_ids"]].tolist()
    least = min(int((labels == label).sum()) for label in set(labels.tolist()))
    assert max(row["ess"] for row in found.rows) < len(images) - least
    only = calibrate(
        images, None, "LS", SCALES, labels=labels, n=2, steps=2, options=CalibrationOptions(label=9)
    )
    assert labels[only.settings["held_out_ids"]].tolist() == [9, 9]


def test_batches_do_not_change_the_result(real_images):
    images, _ = real_images(20, 10)
    found = [
        calibrate(
            images, Grey((1, 10, 10)), "bbELS", SCALES, n=3, steps=3, options=CalibrationOptions(batch_size=b)
        )
        for b in (1, 8)
    ]
    for one, two in zip(*map(without_seconds, found), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


class StopError(Exception):
    pass


def test_an_interrupted_run_resumes_with_the_same_result(real_images, tmp_path):
    images, _ = real_images(20, 10)
    network = Grey((1, 10, 10))

    def run(network=network, **settings):
        options = CalibrationOptions(batch_size=1, seed=settings.pop("seed", 0))
        return calibrate(images, network, "LS", SCALES, n=2, steps=4, options=options, **settings)

    whole = without_seconds(run())

    def stop(stage, done, total):
        if done > 0.6 * total:
            raise StopError

    with pytest.raises(StopError):
        run(folder=tmp_path, progress=stop)
    kept = len(list(tmp_path.rglob("step-*/*.npz")))
    with pytest.raises(pi.PatchIndexError, match="already has results"):
        run(folder=tmp_path)
    with pytest.raises(pi.PatchIndexError, match="seed"):
        run(folder=tmp_path, resume=True, seed=1)
    other = Grey((1, 10, 10))
    other.level = -0.5
    with pytest.raises(pi.PatchIndexError, match="another network"):
        run(other, folder=tmp_path, resume=True)
    assert without_seconds(run(folder=tmp_path, resume=True)) == whole
    assert 0 < kept < len(list(tmp_path.rglob("step-*/*.npz"))) == 6
    assert without_seconds(run(folder=tmp_path, overwrite=True)) == whole
    replaced = run(other, folder=tmp_path, resume=True, overwrite=True)
    assert without_seconds(replaced) == without_seconds(run(other))


@pytest.mark.parametrize("way", ["network", "held-out"])
def test_a_run_resumes_whatever_the_device_and_the_spelling_of_paths(real_images, tmp_path, monkeypatch, way):
    images, _ = real_images(20, 10)
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", images[:15])
    np.save("b.npy", images[15:])

    def run(prefix, device, predicts="epsilon", **settings):
        if way == "held-out":
            return calibrate(f"{prefix}a.npy", None, "LS", SCALES, n=2, held_out=f"{prefix}b.npy", **settings)
        name = f"{prefix}weights.pt"
        network = pi.networks.wrap(
            lambda x, t: 0.5 * x, (1, 10, 10), predicts=predicts, device=device, name=name
        )
        return calibrate(f"{prefix}a.npy", network, "LS", SCALES, n=2, **settings)

    first = run("", "cpu", steps=3, folder="out")
    # One device with two names: the settings differ as between the CPU and a GPU.
    again = run(f"{tmp_path}/", "cpu:0", steps=3, folder="out", resume=True)
    assert again.rows == first.rows
    assert (first.settings["source"], again.settings["source"]) == ("a.npy", f"{tmp_path}/a.npy")
    if way == "network":
        assert (first.settings["network"]["device"], again.settings["network"]["device"]) == ("cpu", "cpu:0")
        with pytest.raises(
            InputError, match=r'other settings: network\.predicts \(was "epsilon", is "v"\); use'
        ):
            run("", "cpu", "v", steps=3, folder="out", resume=True)


def test_all_files_are_written_and_the_schedule_can_be_read(real_images, tmp_path):
    pytest.importorskip("matplotlib")
    images, _ = real_images(20, 10)
    found = calibrate(images, None, "LS", SCALES, n=2, steps=4)
    found.save(tmp_path, beside={"preset": pi.LocalitySchedule.of("mnist-resnet-zeros")})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    read = pi.LocalitySchedule.load(tmp_path / "schedule.json")
    assert read.pairs == found.schedule.pairs
    assert read.quartiles == found.schedule.quartiles
    assert read.provenance.method == "least denoising error on 2 held-out images, machine LS"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "calibration.csv").read_text())))
    assert len(rows) == 3 * 2 * 3
    assert rows[0]["cosine"] == ""
    assert json.loads((tmp_path / "calibration.json").read_text())["summary"] == found.summary()
    with pytest.raises(pi.PatchIndexError, match="overwrite"):
        found.save(tmp_path)
    calibrate(images, Grey((1, 10, 10)), "LS", SCALES, n=2, steps=4).save(tmp_path, overwrite=True)


def test_scales_of_a_store_go_through_auto(store):
    if store.train_windows == "wrapped":
        pytest.skip("one ELS is enough")
    network = pi.ScoreMachine(store, estimator="exact", locality=[3, 3, 5])
    found = calibrate(
        store, network, n=1, steps=3, scales=SCALES, options=CalibrationOptions(estimator="auto")
    )
    assert [row["k"] for row in found.summary()] == [3, 5]
    assert found.settings["machine"] == store.machine


def test_images_of_a_store_are_set_aside(store):
    found = calibrate(store, None, scales=SCALES, n=2, steps=2, options=CalibrationOptions(by_label=True))
    assert found.settings["images"] == 38
    assert found.settings["train_windows"] == store.train_windows
    ids = found.settings["held_out_ids"]
    assert found.settings["labels"] == store.training.labels[ids].tolist()


def test_the_default_grid_is_dense_below_and_fits():
    for size in (3, 5, 8, 14, 32, 64):
        scales = default_scales((size, size + 4))
        assert scales[0] == 3
        assert scales[-1] == size - 1 + size % 2
        assert all(k % 2 for k in scales)
    assert set(default_scales((32, 32))) >= set(range(3, 20, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"machine": "IS"}, "IS has no locality scale"),
        ({"scales": [3]}, "nothing to choose from"),
        ({"scales": [3, 4]}, "k must be odd"),
        ({"machine": "ELS", "scales": [3, 13]}, "larger than the images"),
        ({"n": 0}, "n: must be at least 1"),
        ({"n": 20}, "n: is 20, but there are 19 images"),
        ({"steps": 1}, "steps: must be at least 2"),
        ({"network": Coarse((1, 10, 10)), "steps": 9}, "steps: of 9 steps, two have the same noise level"),
        ({"network": Grey((1, 8, 8))}, "draws images of shape"),
        (
            {"network": Grey((1, 10, 10)), "held_out": np.zeros((1, 10, 10), np.uint8)},
            "cannot be used with a network",
        ),
        ({"held_out": np.zeros((1, 8, 8), np.uint8)}, "images have shape"),
        ({"options": {"estimator": "auto"}}, "auto needs a store"),
        ({"options": {"estimator": "topk"}}, "unknown value 'topk'"),
        ({"options": {"measure": "r"}}, "unknown value 'r'"),
        ({"options": {"ratio": 1}}, "ratio: must be above 1"),
        ({"options": {"pixels": 0}}, "pixels: must be at least 1"),
        ({"options": {"by_label": True}}, "no labels"),
        ({"options": {"label": 3}}, "no labels"),
        ({"options": {"by_label": True}, "network": Grey((1, 10, 10))}, "no labels"),
    ],
)
def test_bad_input_is_refused(real_images, settings, message):
    images, _ = real_images(20, 10)
    settings = {"n": 2, **settings}
    with pytest.raises(pi.PatchIndexError, match=message):
        calibrate(images, options=CalibrationOptions(**settings.pop("options", {})), **settings)
