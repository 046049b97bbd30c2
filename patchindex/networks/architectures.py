"""The networks of Kamb & Ganguli (arXiv 2412.20292): a ResNet, and a UNet with or without self-attention.

All of them predict the noise of an image: `network(x, t, label)` returns an estimate of eps, where
`x = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`. The embeddings of t compute in float32 also inside
`torch.autocast`, because bfloat16 has 8 bits, too few for t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchindex.checks import check_least, is_name_in
from patchindex.errors import InputError

__all__ = ["ARCHITECTURES", "PADDINGS", "ResNet", "UNet", "make_network"]

PADDINGS = ("zeros", "circular")
OPTIONS = {
    "resnet": ("channels", "layers", "padding"),
    "unet": ("widths", "padding", "attention", "embedding_dims"),
}
GROUPS = 8  # of each GroupNorm
HEADS = 4  # of self-attention
LONGEST_PERIOD = 10000.0
MOST_CHANNELS, MOST_LAYERS = 4096, 256  # larger sizes are typing mistakes


class TimeEmbedding(nn.Module):
    """The sinusoidal embedding of the time, plus the embedding of the class.

        e_i = sin(w_i t),    e_(d + i) = cos(w_i t),    w_i = 10000^(-i / (d - 1)),    i = 0, ..., d - 1

    with 2 d = `dims`.
    """

    frequencies: Tensor

    def __init__(self, dims: int, classes: int) -> None:
        super().__init__()
        half = dims // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequencies", (LONGEST_PERIOD**-exponents).float(), persistent=False)
        self.classes = nn.Embedding(classes, dims) if classes else None

    def forward(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Return the embedding, shape (B, dims)."""
        angles = t[:, None] * self.frequencies
        embedding = torch.cat((angles.sin(), angles.cos()), 1)
        return embedding if self.classes is None else embedding + self.classes(label)


class _WrapBorders(torch.autograd.Function):
    """Extend images by one pixel on each side, as if they wrapped around their borders."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the extended images, (B, C, H + 2, W + 2)."""
        y = functional.pad(x, (1, 1, 1, 1))
        y[:, :, 0, 1:-1], y[:, :, -1, 1:-1] = x[:, :, -1], x[:, :, 0]
        y[..., 0], y[..., -1] = y[..., -2], y[..., 1]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the images: each border adds to the pixels that it repeats."""
        gradient = gradient.clone()
        gradient[..., -2] += gradient[..., 0]
        gradient[..., 1] += gradient[..., -1]
        gradient[:, :, -2] += gradient[:, :, 0]
        gradient[:, :, 1] += gradient[:, :, -1]
        return gradient[:, :, 1:-1, 1:-1]


class CircularConv(nn.Conv2d):
    """A 3 x 3 convolution of images that wrap around their borders."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution, at the size of x."""
        # `padding_mode="circular"` of torch leaves the channels-last format: a step takes twice as long.
        wrapped: Tensor = _WrapBorders.apply(x)
        return super().forward(wrapped)


class SelfAttention(nn.Module):
    """Self-attention of all pixels, added to its input; it changes nothing before training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the attention, shape (B, channels, H, W)."""
        batch, channels, height, width = x.shape
        projected = self.project(self.norm(x)).reshape(batch, 3, HEADS, channels // HEADS, height * width)
        query, key, value = projected.transpose(3, 4).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(2, 3).reshape(batch, channels, height, width))


class ResidualBlock(nn.Module):
    """`x + ReLU(conv(x + level))`, where `level` embeds the time and the class."""

    def __init__(self, channels: int, padding: str) -> None:
        super().__init__()
        self.level = _normalised_level(channels)
        self.conv = _conv(channels, channels, padding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the sum, shape of x."""
        return x + functional.relu(self.conv(_add_level(x, self.level, embedding)), inplace=True)


class ResNet(nn.Module):
    """The ResNet of the paper: 3 x 3 convolutions of one width, without normalisation of the images.

    A pixel of the output depends on `2 (layers + 2) + 1` x `2 (layers + 2) + 1` pixels of the input.

    Parameters
    ----------
    image_channels : int
    classes : int
        Number of class labels; 0 for a network without labels.
    channels : int
        Width of the network, a multiple of 8, at least 16; 256 in the paper.
    layers : int
        Number of residual blocks; 6 in the paper.
    padding : str
        `"zeros"` or `"circular"`.

    Examples
    --------
    >>> network = ResNet(3, channels=16, layers=2)
    >>> network(torch.zeros(5, 3, 8, 8), torch.full((5,), 0.5)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(
        self,
        image_channels: int,
        classes: int = 0,
        *,
        channels: int = 256,
        layers: int = 6,
        padding: str = "zeros",
    ) -> None:
        super().__init__()
        _check_width("channels", channels)
        check_least(layers=(layers, 1, MOST_LAYERS))
        _check_padding(padding)
        self.options = {"channels": channels, "layers": layers, "padding": padding}
        self.embedding = TimeEmbedding(channels, classes)
        self.first = _conv(image_channels, channels, padding)
        self.blocks = nn.ModuleList(ResidualBlock(channels, padding) for _ in range(layers))
        self.last_level = _normalised_level(channels)
        self.last = _conv(channels, image_channels, padding)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the predicted noise.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Noisy images.
        t : Tensor, shape (B,)
            Times in [0, 1].
        label : int64 Tensor, shape (B,), optional
            Numbers of the classes, 0 to `classes - 1`; only for a network with class labels.

        Returns
        -------
        Tensor, shape (B, C, H, W)
        """
        embedding = _in_float32(self.embedding, t, label)
        state = self.first(x)
        for block in self.blocks:
            state = block(state, embedding)
        return self.last(_add_level(state, self.last_level, embedding))


class ConvBlock(nn.Module):
    """Two convolutions with ReLU; the embedding of the time and the class is added to the input."""

    def __init__(self, inputs: int, outputs: int, dims: int, padding: str, attention: bool) -> None:
        super().__init__()
        self.level = _level(dims, inputs)
        self.conv1 = _conv(inputs, outputs, padding)
        self.conv2 = _conv(outputs, outputs, padding)
        self.attention = SelfAttention(outputs) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return `outputs` channels, shape (B, outputs, H, W)."""
        x = functional.relu(self.conv1(_add_level(x, self.level, embedding)), inplace=True)
        x = functional.relu(self.conv2(x), inplace=True)
        return x if self.attention is None else self.attention(x)


class UpBlock(nn.Module):
    """A transposed convolution to twice the size, and a `ConvBlock` of the result and the skip connection."""

    def __init__(self, inputs: int, outputs: int, dims: int, padding: str, attention: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = ConvBlock(2 * outputs, outputs, dims, padding, attention)

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        """Return `outputs` channels at the size of `skip`."""
        return self.block(torch.cat((skip, self.up(x)), 1), embedding)


class UNet(nn.Module):
    """The UNet of the paper, optionally with self-attention at some levels.

    Parameters
    ----------
    image_channels : int
    classes : int
        Number of class labels; 0 for a network without labels.
    widths : sequence of int
        Channels of each level, finest first: multiples of 8, at least 16; (64, 128, 256) in the paper. Height
        and width of the images must be multiples of `2^(levels - 1)`.
    padding : str
        `"zeros"` or `"circular"`.
    attention : sequence of int
        The levels with self-attention, 0 the finest.
    embedding_dims : int
        Size of the embedding of the time, even; 256 in the paper.

    Examples
    --------
    >>> network = UNet(1, classes=10, widths=(16, 32), attention=(1,))
    >>> network(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5), torch.tensor([3, 9])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        image_channels: int,
        classes: int = 0,
        *,
        widths: Sequence[int] = (64, 128, 256),
        padding: str = "zeros",
        attention: Sequence[int] = (),
        embedding_dims: int = 256,
    ) -> None:
        super().__init__()
        widths, attention = _as_tuple("widths", widths), _as_tuple("attention", attention)
        if not 1 <= len(widths) <= 16:
            raise InputError(
                "must have 1 to 16 levels", parameter="widths", remedy="give 64,128,256, for example"
            )
        for width in widths:
            _check_width("widths", width)
        for level in attention:
            check_least(attention=(level, 0, len(widths) - 1))
        _check_padding(padding)
        _check_width("embedding_dims", embedding_dims)
        self.options = {
            "widths": list(widths),
            "padding": padding,
            "attention": sorted(set(attention)),
            "embedding_dims": embedding_dims,
        }

        def blocks(kind: Callable[..., nn.Module], sizes: Sequence[tuple[int, int, int]]) -> nn.ModuleList:
            return nn.ModuleList(
                kind(inputs, outputs, embedding_dims, padding, level in attention)
                for level, inputs, outputs in sizes
            )

        coarsest = len(widths) - 1
        inputs = (image_channels, *widths)
        self.embedding = TimeEmbedding(embedding_dims, classes)
        self.down = blocks(ConvBlock, [(i, inputs[i], widths[i]) for i in range(len(widths))])
        self.up = blocks(UpBlock, [(i, widths[i + 1], widths[i]) for i in reversed(range(coarsest))])
        self.last_level = _level(embedding_dims, widths[0])
        self.last = _conv(widths[0], image_channels, padding)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the predicted noise; see `ResNet.forward`."""
        embedding = _in_float32(self.embedding, t, label)
        levels = []
        for i, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if i else x, embedding)
            levels.append(x)
        levels.pop()
        for block in self.up:
            x = block(x, levels.pop(), embedding)
        return self.last(_add_level(x, self.last_level, embedding))


def _unet_with_attention(image_channels: int, classes: int = 0, **options: Any) -> UNet:
    """Return a UNet with self-attention at all levels but the finest, unless `attention` names others."""
    levels = len(_as_tuple("widths", options.get("widths", (64, 128, 256))))
    return UNet(image_channels, classes, **{"attention": tuple(range(1, levels)), **options})


ARCHITECTURES: dict[str, Callable[..., ResNet | UNet]] = {
    "resnet": ResNet,
    "unet": UNet,
    "unet-attention": _unet_with_attention,
}


def make_network(
    name: str, shape: tuple[int, int, int], classes: int, options: Mapping[str, Any]
) -> ResNet | UNet:
    """Return an untrained network of an architecture in `ARCHITECTURES`, for images of shape (C, H, W).

    Raises
    ------
    InputError
        When the architecture or an option is unknown, or the sizes do not fit each other or the images.
    """
    if not is_name_in(name, ARCHITECTURES):
        raise InputError(
            f"unknown architecture {name!r}", parameter="arch", remedy=f"use {', '.join(ARCHITECTURES)}"
        )
    known = OPTIONS["resnet" if name == "resnet" else "unet"]
    for option in options:
        if option not in known:
            raise InputError(
                f"{name} has no such option", parameter=option, remedy=f"{name} has {', '.join(known)}"
            )
    network = ARCHITECTURES[name](shape[0], classes, **options)
    if isinstance(network, UNet):
        unit = 2 ** (len(network.down) - 1)
        if shape[1] % unit or shape[2] % unit:
            raise InputError(
                f"{len(network.down)} levels need images whose sides are multiples of {unit}, "
                f"not {shape[1]}×{shape[2]}",
                parameter="widths",
                remedy="give fewer levels, or resize the images",
            )
    return network


def _conv(inputs: int, outputs: int, padding: str) -> nn.Conv2d:
    if padding == "circular":
        return CircularConv(inputs, outputs, 3)
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _normalised_level(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), nn.GroupNorm(GROUPS, channels), nn.ReLU())


def _level(dims: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(dims, channels))


def _in_float32(module: nn.Module, x: Tensor, *others: Any) -> Tensor:
    """Call a module in float32, also inside `torch.autocast`."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float(), *others)


def _add_level(x: Tensor, level: nn.Module, embedding: Tensor) -> Tensor:
    """Add the embedding, projected to the channels of x, to each pixel of x."""
    return x + _in_float32(level, embedding).to(x.dtype)[:, :, None, None]


def _check_width(name: str, value: Any) -> None:
    check_least(**{name: (value, 2 * GROUPS, MOST_CHANNELS)})
    if value % GROUPS:
        raise InputError(
            f"must be a multiple of {GROUPS}, got {value}",
            parameter=name,
            remedy=f"use {value - value % GROUPS}",
        )


def _check_padding(padding: Any) -> None:
    if not is_name_in(padding, PADDINGS):
        raise InputError(
            f"unknown padding {padding!r}", parameter="padding", remedy=f"use {' or '.join(PADDINGS)}"
        )


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"must be a list of integers, got {value!r}", parameter=name, remedy="give [1, 2]")
    return tuple(value)
