"""Random sequences of builds, appends, added scales, interruptions and resumptions of one store.

After every step the store has the images and scales that it should have, `verify` finds nothing, and an index
that is searched completely gives the exact posterior mean. Other sequences: `--hypothesis-profile long`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import brute
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stores import interrupted, names_in

import patchindex as pi
from patchindex.errors import OutputExistsError

# Random images have patches that the components of a few other random images do not describe.
pytestmark = pytest.mark.filterwarnings("ignore:.*tell patches of appended images apart badly")

EVERYTHING = {"estimator": "topk", "candidates": 10**6, "probes": 10**4}
SCALES, T = (1, 3, 5), 0.5
STEPS = {"append": ("images", "assigning", "merging"), "add": ("training", "assigning", "merging")}


class Stores(RuleBasedStateMachine):
    """One store, and the images, labels and scales that it should have."""

    @initialize(
        name=st.sampled_from(("ELS", "ELS-wrapped", "bbELS")),
        channels=st.sampled_from([1, 3]),
        n=st.integers(3, 8),
        k=st.sampled_from(SCALES),
        labelled=st.booleans(),
        seed=st.integers(0, 999),
    )
    def build(self, name: str, channels: int, n: int, k: int, labelled: bool, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path, self.name, self.labelled = self.folder / "s.zarr", name, labelled
        self.rng, self.channels, self.scales = np.random.default_rng(seed), channels, {k}
        self.images, self.labels = self.some(n)
        options: dict[str, Any] = {"labels": self.labels} if labelled else {}
        pi.build_index(self.images, self.path, scales=[k], lists=5, **options, **brute.settings_of(name))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def some(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        images = self.rng.integers(0, 256, (n, 7, 6, self.channels)).astype(np.uint8)
        return images, self.rng.integers(0, 3, n)

    def arguments(self, n: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        images, labels = self.some(n)
        return images, labels, {"labels": labels} if self.labelled else {}

    def grow(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = (
            np.concatenate([self.images, images]),
            np.concatenate([self.labels, labels]),
        )

    @rule(n=st.integers(1, 4))
    def append(self, n: int) -> None:
        images, labels, options = self.arguments(n)
        pi.append(self.path, images, **options)
        self.grow(images, labels)

    @rule(n=st.integers(1, 4), stage=st.sampled_from(STEPS["append"]), resume=st.booleans(), k=st.data())
    def append_with_an_interruption(self, n: int, stage: str, resume: bool, k: st.DataObject) -> None:
        images, labels, options = self.arguments(n)
        scale = k.draw(st.sampled_from(sorted(self.scales)))
        at = stage if stage == "images" else f"k = {scale}: {stage}"
        interrupted(pi.append, self.path, images, **options, at=at)
        self.agrees()  # until the new store is complete, the old one is there
        with pytest.raises(OutputExistsError, match="unfinished"):
            pi.append(self.path, images, **options)
        pi.append(self.path, images, **options, resume=True)
        self.grow(images, labels)

    @precondition(lambda self: len(self.scales) < len(SCALES))
    @rule(data=st.data(), stage=st.sampled_from((None, *STEPS["add"])))
    def add_a_scale(self, data: st.DataObject, stage: str | None) -> None:
        k = data.draw(st.sampled_from(sorted(set(SCALES) - self.scales)))
        if stage is not None:
            interrupted(pi.add_scales, self.path, k, lists=3, at=f"k = {k}: {stage}")
            self.agrees()
        pi.add_scales(self.path, k, lists=3)
        self.scales.add(k)

    @invariant()
    def agrees(self) -> None:
        """The store is whole, and its contents and posterior means are as they should be."""
        if not hasattr(self, "images"):
            return
        assert names_in(self.folder)[0] == "s.zarr"
        assert pi.verify(self.path).problems == ()
        store = pi.open_index(self.path)
        assert store.scales == tuple(sorted(self.scales))
        training = store.training
        np.testing.assert_array_equal(training.read(0, len(self.images)), self.images[training.source_ids])
        x = torch.from_numpy(brute.noisy(self.images[:1], T))
        label = int(self.labels[0]) if self.labelled else None
        exact = pi.ScoreMachine(
            self.images, self.labels, estimator="exact", label=label, **brute.settings_of(self.name)
        )
        for k in store.scales:
            found = pi.ScoreMachine(store, label=label, **EVERYTHING).posterior_mean(x, T, k=k).mean
            # Two float32 sums of logits of up to 1e3.
            torch.testing.assert_close(found, exact.posterior_mean(x, T, k=k).mean, rtol=0, atol=1e-4)


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=max(1, settings().max_examples // 10), stateful_step_count=5)
