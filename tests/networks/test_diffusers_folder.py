"""Pipelines of diffusers from a local folder."""

import json
import os
from inspect import signature

import pytest
import torch
from safetensors.torch import load_file, save_file
from watched import linux_only, run_watched

from patchindex.errors import InputError, PatchIndexError
from patchindex.networks import open_network

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def save(folder, *, prediction="epsilon", classes=None, **options):
    """Save a tiny pipeline with random weights, and return it."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4, num_class_embeds=classes, add_attention=False,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, prediction_type=prediction)
    pipeline = diffusers.DDPMPipeline(model.eval(), scheduler)
    pipeline.save_pretrained(folder, **options)
    return pipeline


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_pipeline_predicts_as_its_scheduler_says(tmp_path, prediction):
    pipeline = save(tmp_path, prediction=prediction)
    network = open_network(tmp_path)
    assert network.shape == (1, 8, 8)
    x = torch.randn(2, 1, 8, 8)
    step = 49
    with torch.no_grad():
        output = pipeline.unet(x, step).sample
    pipeline.scheduler.config.clip_sample = False
    expected = pipeline.scheduler.step(output, step, x).pred_original_sample
    t = (step + 1) / 100
    assert network.noise(t) == pytest.approx(1 - float(pipeline.scheduler.alphas_cumprod[step]))
    torch.testing.assert_close(network.posterior_mean(x, t).mean, expected, atol=1e-5, rtol=1e-5)


def test_class_labels_are_given_to_the_model(tmp_path):
    pipeline = save(tmp_path, classes=3)
    network = open_network(tmp_path)
    assert network.labels.tolist() == [0, 1, 2]
    x, t, beta = torch.randn(1, 1, 8, 8), 0.3, None
    with torch.no_grad():
        eps = pipeline.unet(x, 29, class_labels=torch.tensor([2])).sample
    beta = network.noise(t)
    torch.testing.assert_close(network.score(x, t, label=2), -eps / beta**0.5, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no label 3; use one of 0, 1, 2"):
        network.score(x, t, label=3)


def test_pickled_weights_are_refused(tmp_path):
    save(tmp_path, safe_serialization=False)
    with pytest.raises(InputError, match=r"unet: has no weights in safetensors files; .*safe_serialization"):
        open_network(tmp_path)


def test_a_model_without_its_scheduler_is_refused(tmp_path):
    save(tmp_path).unet.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="is a model without the noise schedule of its scheduler"):
        open_network(tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a pipeline of a UNet2DModel and a scheduler"),
        (json.dumps({"_class_name": "PNDMPipeline", "unet": ["diffusers", "UNet2D"]}), "but a PNDMPipeline"),
        (json.dumps({"unet": ["my_module", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}),
         "is not a pipeline of a UNet2DModel"),
    ],
)  # fmt: skip
def test_other_pipelines_are_refused(tmp_path, content, message):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(InputError) as error:
        open_network(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("where", ["model_index.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    "kind", ["CMStochasticIterativeScheduler", "EDMEulerScheduler", ["DDPMScheduler"], None]
)
def test_a_scheduler_with_other_noise_is_refused(tmp_path, where, kind):
    save(tmp_path)
    named = {"scheduler": ["diffusers", kind]} if where == "model_index.json" else {"_class_name": kind}
    change(tmp_path / where, **named)
    with pytest.raises(InputError, match="whose noise is not described as that of DDPMScheduler; wrap"):
        open_network(tmp_path)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"])
def test_other_schedulers_of_the_same_noise_are_taken(tmp_path, kind):
    pipeline = save(tmp_path)
    expected = open_network(tmp_path).noise
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    assert kind in (tmp_path / "model_index.json").read_text()
    assert all(open_network(tmp_path).noise(t) == expected(t) for t in (0.1, 0.5, 0.9))


@pytest.mark.parametrize("prediction", ["flow_prediction", ["epsilon"], None])
def test_an_unknown_prediction_is_refused(tmp_path, prediction):
    save(tmp_path)
    change(tmp_path / "scheduler" / "scheduler_config.json", prediction_type=prediction)
    with pytest.raises(InputError, match="has the unknown prediction type"):
        open_network(tmp_path)


def test_a_damaged_pipeline_is_one_line(tmp_path):
    save(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(InputError) as error:
        open_network(tmp_path)
    assert "\n" not in str(error.value)


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_pipeline_without_all_weights_is_refused(tmp_path):
    save(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["surplus"] = weights.pop("conv_in.bias")
    save_file(weights, file)
    with pytest.raises(
        InputError, match=r"unet: its files lack 1 weights of config\.json, conv_in.bias first"
    ):
        open_network(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers_per_block": 2}, r"describes a model of [\d,]+ values, and its files have"),
        ({"block_out_channels": [2**20, 2**20]}, r"describes a model of [\d,]+ values, and its files have"),
        ({"block_out_channels": [2**62, 2**62]}, "diffusers cannot make the model"),
        ({"time_embedding_dim": 2**40}, "describes a model|cannot make the model"),
        ({"num_class_embeds": 2**40}, "describes a model"),
        ({"layers_per_block": 10**9}, r"has 1000000000 layers per block, and the files have \d+ tensors"),
        ({"layers_per_block": "2"}, "has '2' layers per block"),
        ({"down_block_types": ["DownBlock2D"] * 10**5}, "has 1 layers per block"),
        ({"add_attention": True, "attention_head_dim": 0}, "cannot make the model .ZeroDivisionError"),
        ({"norm_num_groups": 3}, "cannot make the model"),
        ({"act_fn": []}, "cannot make the model"),
        ({"time_embedding_type": "position"}, "cannot make the model .UnboundLocalError"),
        ({"in_channels": True}, "has sample_size 8, True input and 1 output channels"),
        ({"sample_size": 10**9}, "has sample_size 1000000000"),
        ({"sample_size": [8, 8, 8]}, r"has sample_size \[8, 8, 8\]"),
        ({"sample_size": "large"}, "has sample_size 'large'"),
        ({"in_channels": 10**12, "out_channels": 10**12}, "describes a model|cannot make the model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "has quantised weights"),
    ],
    ids=str,
)
def test_a_model_that_its_files_cannot_hold_is_refused(tmp_path, settings, words):
    name = "time_embedding_dim"
    if name in settings and name not in signature(diffusers.UNet2DModel.__init__).parameters:
        pytest.skip(f"this diffusers has no {name}")
    save(tmp_path)
    change(tmp_path / "unet" / "config.json", **settings)
    with pytest.raises(InputError, match=words) as refused:
        open_network(tmp_path)
    assert refused.value.exit_code == 2
    assert str(refused.value).isprintable()


REFUSED = """
from patchindex.errors import InputError
from patchindex.networks import open_network

def refuse(folder):
    try:
        open_network(folder)
    except InputError:
        return
    raise AssertionError(f"{folder} is not refused")

open_network(sys.argv[1])  # loads the modules
print(json.dumps({folder: rise(lambda: refuse(folder)) for folder in sys.argv[2:]}))
"""


@linux_only
def test_a_model_larger_than_its_files_takes_no_memory(tmp_path):
    folders = [tmp_path / "whole"]
    save(folders[0])
    for settings in (
        {"block_out_channels": [2**20, 2**20]},
        {"num_class_embeds": 2**40},
        {"layers_per_block": 10**9},
        {"down_block_types": ["DownBlock2D"] * 10**5},
        {"in_channels": 10**12, "out_channels": 10**12},
    ):
        folders.append(tmp_path / str(len(folders)))
        save(folders[-1])
        change(folders[-1] / "unet" / "config.json", **settings)
    rises = run_watched(REFUSED, *folders)
    assert max(rises.values()) < 200 << 20, rises


def test_a_size_of_images_that_the_model_cannot_halve_is_one_line(tmp_path):
    save(tmp_path)
    change(tmp_path / "unet" / "config.json", sample_size=[8, 7])
    with pytest.raises(PatchIndexError, match=r"the model cannot compute images of shape \(1, 1, 8, 7\)"):
        open_network(tmp_path).posterior_mean(torch.zeros(1, 1, 8, 7), 0.5)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_fifo_in_a_pipeline_is_not_waited_for(tmp_path, name):
    save(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is a FIFO, not a regular file"):
        open_network(tmp_path)


def test_a_noise_schedule_that_no_sampler_can_use_is_refused(tmp_path):
    save(tmp_path)
    change(tmp_path / "scheduler" / "scheduler_config.json", trained_betas=[0.5, 2.0])
    with pytest.raises(InputError, match=r"scheduler_config.json: its noise variances must be"):
        open_network(tmp_path)


@pytest.mark.parametrize("steps", [10**9, 0, "100"])
def test_a_pipeline_of_too_many_steps_is_refused(tmp_path, steps):
    save(tmp_path)
    change(tmp_path / "scheduler" / "scheduler_config.json", num_train_timesteps=steps)
    with pytest.raises(InputError, match=f"scheduler: has {steps!r} time steps"):
        open_network(tmp_path)
