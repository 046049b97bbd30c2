"""Run folders and other files of networks, which are checked before they are believed."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.networks import make_network, open_network, open_run


def header_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["patchindex"])


def rewritten(run, path, *, header=None, tensors=None):
    """Write the weights of a run with another header or other tensors."""
    original = run / "weights.safetensors"
    header = {**header_of(original), **(header or {})}
    save_file(tensors or load_file(original), path, {"patchindex": json.dumps(header)})
    return path


def test_a_run_is_a_denoiser(run, pictures):
    network = open_run(run)
    x = torch.randn(2, 1, 8, 8)
    plain = make_network("resnet", (1, 8, 8), 3, {"channels": 16, "layers": 1})
    plain.load_state_dict(load_file(run / "weights.safetensors"))
    with torch.no_grad():
        eps = plain(x, torch.full((2,), 0.5), torch.tensor([1, 1]))  # 4 is the second of the labels 1, 4, 9
    beta = network.noise(0.5)
    expected = (x - beta**0.5 * eps) / (1 - beta) ** 0.5
    torch.testing.assert_close(network.posterior_mean(x, 0.5, label=4).mean, expected)
    torch.testing.assert_close(network.score(x, 0.5, label=4), -eps / beta**0.5, atol=1e-5, rtol=1e-5)
    assert network.labels.tolist() == [1, 4, 9]
    assert network.settings["architecture"] == {
        "name": "resnet", "channels": 16, "layers": 1, "padding": "zeros"
    }  # fmt: skip
    assert network.run["parameters"] == sum(w.numel() for w in plain.parameters())


def test_the_file_of_weights_is_a_network_by_itself(run, tmp_path):
    path = rewritten(run, tmp_path / "shipped.safetensors")
    x = torch.randn(1, 1, 8, 8)
    for opened in (open_run(path), open_network(path), open_network(run)):
        torch.testing.assert_close(opened.score(x, 0.3, label=1), open_run(run).score(x, 0.3, label=1))


def test_unknown_labels_and_shapes_are_refused(run):
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match="the network has no label 5; use one of 1, 4, 9"):
        open_run(run, label=5)
    with pytest.raises(InputError, match="the network has no label 0"):
        open_run(run).score(x, 0.5, label=0)
    with pytest.raises(InputError, match="trained with labels"):
        open_run(run).score(x, 0.5)
    with pytest.raises(InputError, match=r"must be a tensor of shape \(B, 1, 8, 8\)"):
        open_run(run).score(torch.zeros(1, 1, 8, 9), 0.5, label=1)


@pytest.mark.parametrize("name", ["model.pt", "model.PTH", "last.ckpt", "pytorch_model.bin"])
def test_a_pickled_file_is_refused_with_the_way_out(tmp_path, name):
    torch.save({}, tmp_path / name)
    with pytest.raises(
        InputError, match=r"never opened; in your own code, .*weights_only=True.*networks.wrap"
    ):
        open_network(tmp_path / name)


def test_a_missing_or_foreign_path_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such file or folder"):
        open_network(tmp_path / "none")
    with pytest.raises(InputError, match="nor the files of a diffusers pipeline"):
        open_network(tmp_path)
    with pytest.raises(InputError, match="no such file; give"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"shape": [1, 8]}, "shape is [1, 8], expected three sizes"),
        ({"shape": [2, 8, 8]}, "shape is"),
        ({"shape": [1, 8, 1e9]}, "shape is"),
        ({"labels": [4, 1, 9]}, "labels is [4, 1, 9], expected ascending integers"),
        ({"labels": [True, 4, 9]}, "labels is"),
        ({"label_names": [1]}, "label_names is"),
        ({"noise": "parabola"}, "noise is 'parabola', expected a noise schedule"),
        ({"noise": {}}, "noise is {}"),
        ({"architecture": "resnet"}, "architecture is 'resnet', expected an object"),
        ({"architecture": {"name": "vgg"}}, "unknown architecture 'vgg'"),
        ({"architecture": {"name": "resnet", "channels": "64"}}, "channels: must be a whole number"),
        ({"architecture": {"name": "resnet", "channels": 4096, "layers": 256}}, "lacks tensor blocks.1"),
        ({"architecture": {"name": "resnet", "channels": 4096, "layers": 1}}, "the architecture has"),
        ({"architecture": {"name": "resnet", "depth": 3}}, "depth: resnet has no such option"),
        ({"images": None}, "images is None"),
        ({"seconds": "many"}, "seconds is 'many', expected a number"),
        ({"images": {"source": "a", "count": 0, "fingerprint": "b", "labels": None}}, "count is 0"),
        ({"labels": None}, "has an unknown tensor embedding.classes.weight"),
    ],
)
def test_wrong_settings_are_refused(run, tmp_path, header, message):
    path = rewritten(run, tmp_path / "w.safetensors", header=header)
    with pytest.raises(InputError) as error:
        open_run(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w | {"first.weight": torch.zeros(16, 1, 5, 5)},
            "tensor first.weight has shape (16, 1, 5, 5), but the architecture has (16, 1, 3, 3)",
        ),
        (lambda w: w | {"first.bias": torch.zeros(16).double()}, "first.bias has dtype F64, expected F32"),
        (lambda w: w | {"first.bias": torch.full((16,), torch.nan)}, "first.bias has values that are not"),
        (lambda w: w | {"extra": torch.zeros(1)}, "has an unknown tensor extra"),
        (lambda w: {n: t for n, t in w.items() if n != "last.bias"}, "lacks tensor last.bias"),
    ],
)
def test_tensors_that_do_not_fit_the_architecture_are_refused(run, tmp_path, change, message):
    tensors = change(load_file(run / "weights.safetensors"))
    path = rewritten(run, tmp_path / "w.safetensors", tensors=tensors)
    with pytest.raises(InputError) as error:
        open_run(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 not weights", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]"],
    ids=["empty", "zip", "long header", "no header"],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a safetensors file"):
        open_run(tmp_path)


def test_a_truncated_file_is_refused(run, tmp_path):
    content = (run / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(content[:-100])
    with pytest.raises(InputError, match="is not a safetensors file"):
        open_run(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"patchindex": "no JSON"}, {"patchindex": "[" * 5000}])
def test_a_file_without_settings_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors", metadata)
    with pytest.raises(InputError, match="has no settings of a training run"):
        open_run(tmp_path)


def test_half_precision_weights_are_read(run, tmp_path):
    half = {name: tensor.half() for name, tensor in load_file(run / "weights.safetensors").items()}
    path = rewritten(run, tmp_path / "half.safetensors", tensors=half)
    x = torch.randn(1, 1, 8, 8)
    scores = [open_run(each).score(x, 0.5, label=1) for each in (path, run)]
    torch.testing.assert_close(*scores, atol=2e-3, rtol=2e-3)  # 11 bits per weight
    assert np.isfinite(float(scores[0].sum()))
