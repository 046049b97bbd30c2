"""The paper's networks: sizes, fields of view, and the options that they refuse."""

import pytest
import torch

from patchindex.errors import InputError
from patchindex.networks import ARCHITECTURES, ResNet, UNet, make_network
from patchindex.networks.architectures import CircularConv

SIDE = 17


def predict(network, x, t=0.5, label=None):
    with torch.no_grad():
        return network.eval()(x, torch.full((len(x),), t), label)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (ResNet(1), 4_009_473),  # counted in the code of the paper
        (ResNet(3), 4_018_691),
        (UNet(1), 2_026_946),
        (UNet(3), 2_029_766),
    ],
)
def test_the_networks_have_the_sizes_of_the_paper(network, expected):
    assert parameters(network) == expected


def test_a_narrow_resnet_has_its_recorded_size():
    """The paper has no such network: the number is a record of this package's."""
    assert parameters(ResNet(1, channels=64)) == 252_801


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_resnet_sees_a_square_of_its_depth(layers, padding):
    torch.manual_seed(0)
    network = ResNet(1, channels=16, layers=layers, padding=padding)
    x = torch.randn(8, 1, SIDE, SIDE, requires_grad=True)
    network(x, torch.full((8,), 0.5))[:, :, SIDE // 2, SIDE // 2].sum().backward()
    seen = x.grad.abs().amax((0, 1)) > 0
    reach = layers + 2
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    middle = slice(SIDE // 2 - reach, SIDE // 2 + reach + 1)
    expected[middle, middle] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(("padding", "equivariant"), [("circular", True), ("zeros", False)])
def test_only_a_circular_resnet_commutes_with_shifts(padding, equivariant):
    torch.manual_seed(0)
    network = ResNet(3, channels=16, layers=2, padding=padding)
    x = torch.randn(2, 3, SIDE, SIDE)
    moved = predict(network, x.roll((4, -3), (2, 3))).roll((-4, 3), (2, 3))
    difference = (moved - predict(network, x)).abs().amax((0, 1))
    assert bool(difference.max() < 1e-5) == equivariant  # float32 sums of 144 products
    assert difference[8, 8] < 1e-5  # the middle never sees a border, neither before nor after the shift


def test_a_circular_unet_commutes_with_shifts_by_its_coarsest_pixel():
    torch.manual_seed(0)
    network = UNet(1, widths=(16, 16, 24), padding="circular")
    x = torch.randn(2, 1, 16, 16)
    moved = predict(network, x.roll((4, 8), (2, 3))).roll((-4, -8), (2, 3))
    torch.testing.assert_close(moved, predict(network, x), atol=1e-5, rtol=0)


def test_a_circular_convolution_is_that_of_torch():
    torch.manual_seed(0)
    ours = CircularConv(3, 4, 3).double()
    reference = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular").double()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), reference(x))
    gradients = [torch.autograd.grad((conv(x) ** 2).sum(), x)[0] for conv in (ours, reference)]
    torch.testing.assert_close(*gradients)


def test_self_attention_starts_as_nothing_and_then_sees_the_whole_image():
    torch.manual_seed(0)
    network = make_network("unet-attention", (1, 16, 16), 0, {"widths": [16, 16, 16]})
    plain = UNet(1, widths=(16, 16, 16))
    plain.load_state_dict({n: w for n, w in network.state_dict().items() if "attention" not in n})
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(predict(network, x), predict(plain, x))
    assert network.options["attention"] == [1, 2]
    for name, parameter in network.named_parameters():
        if name.endswith("attention.out.weight"):
            torch.nn.init.normal_(parameter)
    x.requires_grad_()
    network(x, torch.full((1,), 0.5))[0, 0, 0, 0].backward()
    assert bool((x.grad.abs() > 0).float().mean() > 0.9)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_predictions_depend_on_time_and_class(name):
    torch.manual_seed(0)
    small = {"channels": 16, "layers": 1} if name == "resnet" else {"widths": (16, 16)}
    network = make_network(name, (3, 8, 12), 4, small)
    x = torch.randn(2, 3, 8, 12)
    one = predict(network, x, 0.5, torch.tensor([0, 3]))
    assert one.shape == x.shape
    assert not torch.allclose(one, predict(network, x, 0.6, torch.tensor([0, 3])))
    other = predict(network, x, 0.5, torch.tensor([0, 1]))
    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1])


def test_times_keep_their_precision_in_bfloat16():
    torch.manual_seed(0)
    network = ResNet(1, channels=16, layers=1)
    t = torch.tensor([0.9, 0.9002])  # equal in bfloat16
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        first, second = network.embedding(t, None), network.blocks[0].level
    assert not torch.equal(first[0], first[1])
    assert second[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "unknown architecture 'vgg'; use resnet, unet, unet-attention"),
        ("resnet", {"channels": 20}, "channels: must be a multiple of 8"),
        ("resnet", {"channels": 8}, "channels: must be from 16 to 4096, got 8"),
        ("resnet", {"layers": True}, "layers: must be a whole number"),
        ("resnet", {"padding": "same"}, "unknown padding 'same'"),
        ("resnet", {"widths": (16,)}, "widths: resnet has no such option"),
        ("unet", {"channels": 64}, "channels: unet has no such option"),
        ("unet", {"widths": "64"}, "widths: must be a list of integers"),
        ("unet-attention", {"widths": 64}, "widths: must be a list of integers"),
        ("unet", {"widths": ()}, "widths: must have 1 to 16 levels"),
        ("unet", {"widths": (16, 16), "attention": (2,)}, "attention: must be from 0 to 1"),
        ("unet", {"widths": (16, 16, 16, 16)}, "sides are multiples of 8, not 12×12"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(InputError) as error:
        make_network(name, (1, 12, 12), 0, options)
    assert message in str(error.value)
