"""The posterior mean in float64 numpy, straight from the definitions, by loops over pixels and windows.

It shares no code with the package. It is slow, and the reference of the engines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MACHINES = ("IS", "LS", "ELS", "ELS-wrapped", "bbELS")


def settings_of(name: str) -> dict[str, str]:
    """Return the arguments `machine` and `train_windows` of the package for one of `MACHINES`."""
    windows = "wrapped" if name == "ELS-wrapped" else "valid"
    return {"machine": name.removesuffix("-wrapped"), "train_windows": windows}


@dataclass(frozen=True)
class Truth:
    mean: np.ndarray  # (C, H, W)
    ess: np.ndarray  # (H, W)
    log_weight: np.ndarray  # (H, W): log of the sum of exp(logit)
    count: np.ndarray  # (H, W): number of patches that the pixel was compared with


def beta_of(t: float) -> float:
    return 1 - math.cos(t / 1.008 * math.pi / 2) ** 2


def noisy(images: np.ndarray, t: float, seed: int = 0) -> np.ndarray:
    """Return uint8 images (B, H, W, C) with the noise of time t: float32 (B, C, H, W)."""
    beta = beta_of(t)
    x0 = images.transpose(0, 3, 1, 2) / 127.5 - 1
    eps = np.random.default_rng(seed).standard_normal(x0.shape)
    return (math.sqrt(1 - beta) * x0 + math.sqrt(beta) * eps).astype(np.float32)


def images_and_query(
    real_images: Callable[..., tuple[np.ndarray, np.ndarray]],
    n: int,
    size: tuple[int, int],
    channels: int,
    t: float,
    queries: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return n real images, and as many other images as there are queries with the noise of time t."""
    images = real_images(n, size, channels=channels)[0]
    return images, noisy(real_images(queries, size, channels=channels, skip=500)[0], t)


def window(image: np.ndarray, y: int, x: int, k: int, padding: str) -> np.ndarray:
    """Return the k x k window centred on (y, x) of images (..., H, W, C), flattened: (..., k k C)."""
    height, width = image.shape[-3:-1]
    d = k // 2
    pixels = []
    for dy in range(-d, d + 1):
        for dx in range(-d, d + 1):
            row, column = y + dy, x + dx
            if padding == "circular":
                pixels.append(image[..., row % height, column % width, :])
            elif 0 <= row < height and 0 <= column < width:
                pixels.append(image[..., row, column, :])
            else:
                assert padding == "zeros", "a valid window left the image"
                pixels.append(np.zeros_like(image[..., 0, 0, :]))
    return np.concatenate(pixels, -1)


def position_class(machine: str, k: int, y: int, x: int, height: int, width: int) -> tuple[int, ...]:
    """Return the position class of (y, x)."""
    d = k // 2
    if machine in ("IS", "LS"):
        return y, x
    if machine in ("ELS", "ELS-wrapped"):
        return ()
    return min(y, d), min(height - 1 - y, d), min(x, d), min(width - 1 - x, d)


def train_positions(machine: str, k: int, height: int, width: int) -> list[tuple[int, int]]:
    """Return the centres of the windows of a training image, in raster order."""
    d = k // 2 if machine == "ELS" else 0
    return [(y, x) for y in range(d, height - d) for x in range(d, width - d)]


def posterior_mean(
    images: np.ndarray, x: np.ndarray, beta: float, machine: str, k: int | None = None
) -> Truth:
    """Return the posterior mean of one noisy image x (C, H, W) under uint8 training images (N, H, W, C)."""
    v = images.astype(np.float64) / 127.5 - 1
    q = x.astype(np.float64).transpose(1, 2, 0)
    height, width, channels = q.shape
    a = math.sqrt(1 - beta)
    truth = Truth(
        np.empty((channels, height, width)), *(np.empty((height, width)) for _ in range(3))
    )  # filled below
    if machine == "IS":
        distance = ((q - a * v) ** 2).sum((1, 2, 3))
        for y in range(height):
            for x_ in range(width):
                _store(truth, y, x_, -distance / (2 * beta), v[:, y, x_])
        return truth
    assert k is not None
    query_padding = "circular" if machine.startswith("ELS") else "zeros"
    train_padding = {"ELS": "valid", "ELS-wrapped": "circular"}.get(machine, "zeros")
    by_class: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for y, x_ in train_positions(machine, k, height, width):
        patch = window(v, y, x_, k, train_padding)  # one per training image
        by_class.setdefault(position_class(machine, k, y, x_, height, width), []).append((patch, v[:, y, x_]))
    joined = {
        name: (np.concatenate([p for p, _ in members]), np.concatenate([c for _, c in members]))
        for name, members in by_class.items()
    }
    for y in range(height):
        for x_ in range(width):
            patches, centres = joined[position_class(machine, k, y, x_, height, width)]
            difference = window(q, y, x_, k, query_padding) - a * patches
            _store(truth, y, x_, -(difference**2).sum(1) / (2 * beta), centres)
    return truth


def _store(truth: Truth, y: int, x: int, logits: np.ndarray, centres: np.ndarray) -> None:
    top = logits.max()
    w = np.exp(logits - top)
    truth.mean[:, y, x] = w @ centres / w.sum()
    truth.ess[y, x] = w.sum() ** 2 / (w**2).sum()
    truth.log_weight[y, x] = top + math.log(w.sum())
    truth.count[y, x] = len(w)


def weights(
    images: np.ndarray, x: np.ndarray, beta: float, machine: str, pixel: tuple[int, int], k: int | None = None
) -> dict[tuple[int, int, int], float]:
    """Return the softmax weight of each patch (image, y, x) that a pixel of x is compared with."""
    v = images.astype(np.float64) / 127.5 - 1
    q = x.astype(np.float64).transpose(1, 2, 0)
    height, width, _ = q.shape
    a = math.sqrt(1 - beta)
    if machine == "IS":
        distances = {(i, *pixel): ((q - a * image) ** 2).sum() for i, image in enumerate(v)}
    else:
        assert k is not None
        query_padding = "circular" if machine.startswith("ELS") else "zeros"
        train_padding = {"ELS": "valid", "ELS-wrapped": "circular"}.get(machine, "zeros")
        mine = window(q, *pixel, k, query_padding)
        own = position_class(machine, k, *pixel, height, width)
        distances = {
            (i, *place): ((mine - a * window(image, *place, k, train_padding)) ** 2).sum()
            for place in train_positions(machine, k, height, width)
            if position_class(machine, k, *place, height, width) == own
            for i, image in enumerate(v)
        }
    logits = -np.array(list(distances.values())) / (2 * beta)
    w = np.exp(logits - logits.max())
    return dict(zip(distances, (w / w.sum()).tolist(), strict=True))
