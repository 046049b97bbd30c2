"""The weight of each training image in the posterior mean of a score machine: exact, over all patches.

A pixel's softmax is over patches; the weight of a training image is the sum over its patches. A second pass
over the training images, after the exact scan has given the sum of all weights, needs no list of patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import windows
from patchindex.images.by_label import as_tensor, read_ahead, to_unit
from patchindex.random_streams import random_stream
from patchindex.runtime import part_of, plain_state

__all__ = ["Contributions", "contributions", "some_pixels", "textured"]

CACHED = 1 << 18  # logits at a time, for the processor's cache
LEAST_LOGIT = -80.0  # relative to the sum of all weights: exp is ten times slower where it underflows
AROUND, CONTRAST = 5, 0.1  # pixels; standard deviation in units of [-1, 1], about 13 grey levels


@dataclass(frozen=True)
class Contributions:
    """The training images that noisy images draw from, at one noise level.

    Attributes
    ----------
    weight : Tensor, shape (B, N), float64
        Mean over the chosen pixels of the weight of each training image, in the order of the request's
        images; rows sum to 1, and are 0 where no pixel was chosen.
    images : Tensor, shape (B,)
        Number of training images that an image draws from: `exp(-sum_n w_n log w_n)`, w = `weight`.
    images_per_pixel : Tensor, shape (B,)
        The same number for one pixel: the geometric mean over pixels.
    ess : Tensor, shape (B,)
        Effective sample size of the softmax over patches: the geometric mean over pixels.
    """

    weight: Tensor
    images: Tensor
    images_per_pixel: Tensor
    ess: Tensor


@plain_state()
def textured(images: Tensor) -> Tensor:
    """Return the pixels, (n, H, W) bool, whose 5 x 5 neighbourhood has a standard deviation from 0.1 on.

    Flat neighbourhoods are alike in all training images, and tell nothing about where an image comes from.
    The standard deviation is of the mean over channels; borders are repeated.
    """
    grey = torch.nn.functional.pad(images.float().mean(1, keepdim=True), (AROUND // 2,) * 4, mode="replicate")
    means = torch.nn.functional.avg_pool2d(grey, AROUND, 1)
    squares = torch.nn.functional.avg_pool2d(grey.square(), AROUND, 1)
    return ((squares - means.square()) >= CONTRAST**2)[:, 0]


def some_pixels(images: Tensor, most: int, seed: int = 0) -> list[Tensor]:
    """Return raster numbers of up to `most` textured pixels of each image, drawn at random, ascending."""
    chosen = []
    for i, mask in enumerate(textured(images)):
        numbers = mask.flatten().nonzero()[:, 0].cpu().numpy()
        drawn = random_stream(seed, i).permutation(numbers)[:most]
        chosen.append(torch.from_numpy(np.sort(drawn)))
    return chosen


@plain_state()
def contributions(request: ScoreRequest) -> Contributions:
    """Return the weight of each training image at the request's `pixels`: lists of raster numbers.

    Logits are float32, as in the exact scan. The time is one exact scan of these pixels, and about as many
    exponentials as pixels times patches of their class. Arrays take B x N numbers and the request's `memory`.
    """
    geometry, x, chosen = request.geometry, request.x, request.pixels
    assert isinstance(chosen, list)
    first = replace(request, progress=part_of(request.progress, "training images", 0, 0.5))
    second = part_of(request.progress, "training images", 0.5, 1)
    state = scan(first)
    log_weight = state.log_weight()
    lo, hi = request.image_range
    batch = torch.cat([torch.full((len(numbers),), i) for i, numbers in enumerate(chosen)])
    place = torch.cat(chosen)
    width = geometry.size[1]
    query = windows(x.float(), geometry, query=True)[batch, :, place // width, place % width].flatten(1)
    # log_weight has the norm of the window; the products below have not.
    log_weight = log_weight + query.double().square().sum(1) / (2 * request.beta)
    classes = torch.from_numpy(geometry.query_classes.reshape(-1))[place]
    members = torch.from_numpy(geometry.train_classes)
    entropy = torch.zeros(len(place), dtype=torch.float64)
    weight = torch.zeros((len(x), hi - lo), dtype=torch.float64)
    patch_bytes = 4 * geometry.patches_per_image * 3 * query.shape[1]
    step = max(1, min(64, request.memory // 2 // patch_bytes))
    blocks = (request.training.read(at, min(at + step, hi)) for at in range(lo, hi, step))
    done = 0
    with read_ahead(blocks) as ahead, torch.no_grad():
        for block in ahead:
            tile = to_unit(as_tensor(block)).permute(0, 3, 1, 2)
            patches = windows(tile, geometry, query=False).permute(0, 2, 3, 1, 4, 5)
            patches = patches.reshape(len(tile), geometry.patches_per_image, -1)
            for number in classes.unique():
                mine = (classes == number).nonzero()[:, 0]
                some = patches[:, members == number].flatten(0, 1)
                norms = some.square().sum(1) * (-0.5 * request.a**2 / request.beta)
                for part in mine.split(max(1, CACHED // len(some))):
                    logits = torch.addmm(norms, query[part] * (request.a / request.beta), some.T)
                    shares = logits.sub_(log_weight[part, None].float()).clamp_(min=LEAST_LOGIT).exp_()
                    by_image = shares.reshape(len(part), len(tile), -1).sum(2).double()
                    entropy[part] -= torch.special.xlogy(by_image, by_image).sum(1)
                    weight[:, done : done + len(tile)].index_add_(0, batch[part], by_image)
            done += len(tile)
            second("training images", done, hi - lo)
    counts = torch.bincount(batch, minlength=len(x)).double()
    weight /= counts.clamp_min(1)[:, None]

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64).index_add_(0, batch, values) / counts  # NaN: no pixel

    images = torch.where(counts > 0, -torch.special.xlogy(weight, weight).sum(1), torch.nan)
    return Contributions(weight, images.exp(), mean(entropy).exp(), mean(state.ess().log()).exp())
