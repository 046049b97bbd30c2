"""The patch index: built once, stored with zarr, searched with FAISS."""

from patchindex.index.build import build_index, free_bytes
from patchindex.index.plan import BuildPlan, ScalePlan, parse_memory, plan_build
from patchindex.index.scale import ScaleIndex
from patchindex.index.store import PatchIndex, open_index

__all__ = [
    "BuildPlan",
    "PatchIndex",
    "ScaleIndex",
    "ScalePlan",
    "build_index",
    "free_bytes",
    "open_index",
    "parse_memory",
    "plan_build",
]
