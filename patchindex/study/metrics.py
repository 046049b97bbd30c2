"""How near images are to a reference, one number an image.

What the paper's code calls r^2 is Pearson's r of images that are centred globally, and not its square; here
both measures have their own names.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["pearson_r", "r2", "rmse"]


def pearson_r(images: Tensor, reference: Tensor) -> Tensor:
    """Return the correlation over all pixels and channels of each image: shape (n,), float64.

    Parameters
    ----------
    images, reference : Tensor, shape (n, C, H, W)

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> round(pearson_r(0.5 * x + 0.1, x).item(), 6)
    1.0
    """
    a, b = (t.double().flatten(1) - t.double().flatten(1).mean(1, keepdim=True) for t in (images, reference))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def r2(images: Tensor, reference: Tensor) -> Tensor:
    """Return `1 - sum (image - reference)^2 / sum (reference - its mean)^2` of each image.

    Shape (n,), float64.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)
    >>> r2(x, x).item(), round(r2(0.5 * x, x).item(), 6)
    (1.0, 0.75)
    """
    a, b = images.double().flatten(1), reference.double().flatten(1)
    return 1 - (a - b).square().sum(1) / (b - b.mean(1, keepdim=True)).square().sum(1)


def rmse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the root mean square difference of each image: shape (n,), float64."""
    return (images.double() - reference.double()).flatten(1).square().mean(1).sqrt()
