"""The index as it is written: plan, train, encode in shards, merge, append."""

from patchindex.build.build import build_index
from patchindex.build.limits import free_bytes
from patchindex.build.more_images import append, image_options_of
from patchindex.build.more_scales import add_scales, plan_scales
from patchindex.build.plan import BuildPlan, ScalePlan, parse_memory, plan_build
from patchindex.build.settings import BuildSettings
from patchindex.build.times import measure_rates, stage_seconds
from patchindex.build.unfinished import ScaleState, UnfinishedBuild, unfinished_build

__all__ = [
    "BuildPlan",
    "BuildSettings",
    "ScalePlan",
    "ScaleState",
    "UnfinishedBuild",
    "add_scales",
    "append",
    "build_index",
    "free_bytes",
    "image_options_of",
    "measure_rates",
    "parse_memory",
    "plan_build",
    "plan_scales",
    "stage_seconds",
    "unfinished_build",
]
