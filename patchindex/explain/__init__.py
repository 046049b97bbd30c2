"""The training patches that an image came from: mosaics, figures, and a page to look at them."""

from patchindex.explain.explanation import Explanation, explain_sample
from patchindex.explain.mosaic import Mosaic, mosaic
from patchindex.explain.steps import Steps, explain_steps, read_steps, redraw

__all__ = [
    "Explanation",
    "Mosaic",
    "Steps",
    "explain_sample",
    "explain_steps",
    "mosaic",
    "read_steps",
    "redraw",
]
