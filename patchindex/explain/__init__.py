"""The training patches that an image came from: mosaics, figures, and a page to look at them."""

from patchindex.explain.explanation import Explanation, explain_sample
from patchindex.explain.mosaic import Mosaic, mosaic
from patchindex.explain.page import page_of
from patchindex.explain.plots import figures
from patchindex.explain.steps import Steps, explain_steps, read_steps, redraw

__all__ = [
    "Explanation",
    "Mosaic",
    "Steps",
    "explain_sample",
    "explain_steps",
    "figures",
    "mosaic",
    "page_of",
    "read_steps",
    "redraw",
]
