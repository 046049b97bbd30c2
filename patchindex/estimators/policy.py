"""`AutoPolicy`: the settings by which `auto` divides its work between the index, a sample and exact scans."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_POLICY", "AutoPolicy"]


@dataclass(frozen=True)
class AutoPolicy:
    """Settings of `auto` that change what an estimate costs, and not what it estimates.

    A knob for research. Comments give the reasons for defaults, decision records 5 and 6 the measurements.
    """

    # Lists scanned and patches compared exactly, per pixel, where the store has no operating curve. Above
    # `fine_tolerance` fewer are enough: a quarter of the lists misses about ten times the squared weight, and
    # four times the tolerance is 16 times as large when squared. Less than `least_part` saves little time.
    probes: int = 1024
    candidates: int = 1024
    fine_tolerance: float = 0.01
    least_part: float = 0.25
    # Nanoseconds of one thread (AVX-512) per probe and per candidate, to predict the cost of a near field.
    probe_ns: float = 370.0
    candidate_ns: float = 250.0
    # Cost of an estimate over the cost of a near field of the size for a fine tolerance, at least 1; measured
    # where an exact scan costs as much as the estimate.
    total_cost: float = 1.7
    # Pixels are computed exactly where an estimate costs more than this multiple of an exact scan.
    cost_limit: float = 1.0
    # Strata that a sample of all pixels starts with: the standard error of fewer is too uncertain to act on.
    first_strata: int = 64
    # Largest difference of noise levels, in radians (variance = sin^2), from the step whose heavy patches are
    # tried again: a step is 0.08. Several steps later errors were 2 to 4 standard errors.
    same_noise: float = 0.12
    # Heavy patches per pixel that are kept for the next step: as many as candidates, to find them all again.
    recalled: int = 1024
    # A step that tries them needs this many times fewer probes and candidates, for what is new.
    fewer_probes: int = 8
    fewer_candidates: int = 4
    # Share of a pixel's near field from which on a patch is tried for the neighbouring pixels: 1/4096 takes
    # twice the time and leaves a tenth less to the sample.
    heavy: float = 1 / 1024
    # Cells (the coarse level of the lists) per pixel whose lists are ranked: they have 23 000 of 131 000.
    cells: int = 64
    # Cells for a larger near field, which needs the likeliest of eight times as many lists.
    deeper_cells: int = 256
    # A larger near field has this many times the probes and candidates: 16 costs more and saves little.
    deeper: int = 8
    # The operating curve expects a larger near field to reduce the sample by this factor, as measured.
    deeper_saves: float = 4.0
    # A pixel gets a larger near field if its sample would take this many times as long: 1 takes longer.
    worth_deeper: float = 2.0
    # Strata by which the sample of single pixels grows at least: fewer say too little about their error.
    pixel_strata: int = 16
    # Share of all patches beyond which a single pixel is computed exactly: its sample would go on growing.
    largest_sample: float = 0.5
    # Near fields whose costs differ by less than this factor count as equal: times are not known better.
    same_cost: float = 1.1
    # A near field with fewer candidates than `candidates` is taken where its expected time is less than this
    # part of the time of others: the next step finds less in it, and takes longer than expected.
    saves: float = 0.8
    # Largest squared error by missed heavy patches, in units of the squared tolerance. Pixels use 0.4 of the
    # squared tolerance on average.
    missed: float = 0.15

    def untuned_size(self, tolerance: float) -> tuple[int, int]:
        """Return the probes and candidates for a tolerance where the store has no operating curve."""
        part = min(1.0, max(self.least_part, self.fine_tolerance / tolerance))
        return max(1, round(part * self.probes)), max(1, round(part * self.candidates))

    def near_field_seconds(self, probes: int, candidates: int) -> float:
        """Return the expected seconds of one thread per pixel of a near field."""
        return 1e-9 * (probes * self.probe_ns + candidates * self.candidate_ns)


DEFAULT_POLICY = AutoPolicy()
