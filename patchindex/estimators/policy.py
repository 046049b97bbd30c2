"""`AutoPolicy`: the settings by which `auto` divides its work between the index, a sample and exact scans."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_POLICY", "AutoPolicy"]


@dataclass(frozen=True)
class AutoPolicy:
    """Settings of `auto` that change what an estimate costs, and not what it estimates.

    A knob for research and tests: `ScoreMachine(index, estimator="auto", policy=AutoPolicy(deeper=16))`.
    The measurements behind the defaults, most of them on CIFAR-10, are in decision records 5 and 6.

    Attributes
    ----------
    probes, candidates : int
        Inverted lists that are scanned (probes), and patches that are compared exactly (candidates), per
        pixel, where the store has no operating curve. With 256 probes the patches that are missed have ten
        times as much squared weight as with 1 024.
    probe_ns, candidate_ns : float
        Nanoseconds of one thread (AVX-512) per probe and per candidate. They predict the cost of a near
        field, which is compared with the cost of an exact scan.
    total_cost : float
        Cost of a whole estimate in units of its near field, as measured on 6 000 images of 32 x 32 x 3,
        where an estimate and an exact scan cost about the same.
    cost_limit : float
        The pixels are computed exactly where an estimate is expected to cost more than this multiple of an
        exact scan. 1 is where they cost the same.
    first_strata : int
        Strata that each sample of all pixels starts with. The standard error of a smaller sample is too
        uncertain to act on.
    same_noise : float
        Largest difference of noise levels, in radians (the variance is sin^2), at which the heavy patches of
        an earlier step are tried again. One of 20 DDIM steps is 0.08; after several steps errors were 2 to 4
        times the standard errors.
    recalled : int
        Heavy patches per pixel that are kept for the next step: about as many as candidates, so that the next
        step finds its whole near field again.
    fewer_probes, fewer_candidates : int
        A step that tries the patches of an earlier step again scans this many times fewer lists, and compares
        this many times fewer new patches: it only has to find what is new.
    heavy : float
        Share of a pixel's near field from which on a patch is also tried for the neighbouring pixels. With
        1/4096 a tenth less has to be sampled, for twice the time.
    cells : int
        Cells (the coarse level of the lists) per pixel whose lists are ranked. In a store with 131 000 lists
        64 cells have 23 000, many more than are scanned.
    deeper_cells : int
        Cells for pixels that get a larger near field, which need the likeliest of eight times as many lists.
    deeper : int
        A larger near field has this many times as many probes and candidates. 16 costs more and saves little.
    deeper_saves : float
        The operating curve expects a larger near field to reduce the sample by this factor, which was
        measured with four times as many probes and candidates.
    worth_deeper : float
        A pixel gets a larger near field where the sample that it needs would take this many times as long.
        With 1 and with 4 images take as long or longer.
    pixel_strata : int
        Strata by which the sample of single pixels grows at least. Fewer say too little about their error.
    largest_sample : float
        Share of all patches beyond which a single pixel is computed exactly, since its sample keeps growing.
    same_cost : float
        The operating curve treats near fields as equally good whose costs differ by less than this factor,
        which is how well times are known, and prefers the smallest.
    missed : float
        A near field may be chosen where the heavy patches that it misses add at most this share of the
        squared tolerance to the squared error. Of the squared tolerance pixels use about 0.4 on average.
    """

    probes: int = 1024
    candidates: int = 1024
    probe_ns: float = 370.0
    candidate_ns: float = 250.0
    total_cost: float = 1.7
    cost_limit: float = 1.0
    first_strata: int = 64
    same_noise: float = 0.12
    recalled: int = 1024
    fewer_probes: int = 8
    fewer_candidates: int = 4
    heavy: float = 1 / 1024
    cells: int = 64
    deeper_cells: int = 256
    deeper: int = 8
    deeper_saves: float = 4.0
    worth_deeper: float = 2.0
    pixel_strata: int = 16
    largest_sample: float = 0.5
    same_cost: float = 1.1
    missed: float = 0.15

    def near_field_seconds(self, probes: int, candidates: int) -> float:
        """Return the expected seconds of one thread per pixel of a near field.

        Examples
        --------
        >>> round(1e6 * AutoPolicy().near_field_seconds(1024, 1024))  # microseconds
        635
        """
        return 1e-9 * (probes * self.probe_ns + candidates * self.candidate_ns)


DEFAULT_POLICY = AutoPolicy()
