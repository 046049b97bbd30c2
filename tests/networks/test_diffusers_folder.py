"""Pipelines of diffusers from a local folder."""

import json

import pytest
import torch

from patchindex.errors import InputError
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


def test_a_damaged_pipeline_is_one_line(tmp_path):
    save(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(InputError) as error:
        open_network(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pipeline_without_all_weights_is_refused(tmp_path):
    save(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 2}))
    with pytest.raises(InputError, match=r"unet: its files lack \d+ weights of config\.json, down_blocks"):
        open_network(tmp_path)


@pytest.mark.parametrize("steps", [10**9, 0, "100"])
def test_a_pipeline_of_too_many_steps_is_refused(tmp_path, steps):
    save(tmp_path)
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": steps}))
    with pytest.raises(InputError, match=f"scheduler: has {steps!r} time steps"):
        open_network(tmp_path)
