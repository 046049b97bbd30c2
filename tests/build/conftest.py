from __future__ import annotations

import pytest

from patchindex.build import shards


@pytest.fixture
def small_shards(monkeypatch):
    """Several shards and buckets in a small build."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(shards, "PIECE_BYTES", 0)
