"""The training patches that an image came from: mosaics, figures, and a page to look at them."""

from patchindex.explain.mosaic import Mosaic, mosaic

__all__ = ["Mosaic", "mosaic"]
