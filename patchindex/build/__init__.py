"""The index as it is written: plan, train, encode in shards, merge, append."""

from patchindex.build.append import add_scales, append, plan_scales
from patchindex.build.build import build_index
from patchindex.build.plan import BuildPlan, ScalePlan, parse_memory, plan_build
from patchindex.build.workdir import free_bytes

__all__ = [
    "BuildPlan",
    "ScalePlan",
    "add_scales",
    "append",
    "build_index",
    "free_bytes",
    "parse_memory",
    "plan_build",
    "plan_scales",
]
