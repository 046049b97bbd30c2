"""Samplers: free functions over any score, and `sample`, which draws with a score machine."""

from patchindex.sampling.samplers import (
    SAMPLERS,
    SampleResult,
    ddim,
    draw_noise,
    sample,
    starting_noise,
)

__all__ = ["SAMPLERS", "SampleResult", "ddim", "draw_noise", "sample", "starting_noise"]
