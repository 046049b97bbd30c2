"""Studies: accuracy of estimates, theory against networks, originality, and counts of features."""

from patchindex.study.calibrate import CalibrationOptions, calibrate
from patchindex.study.calibration import Calibration
from patchindex.study.compare import Study, compare
from patchindex.study.counters import count_holes, count_limbs, count_strokes, draw_figures
from patchindex.study.limbs import FeatureCounts, count_features, replace_scales
from patchindex.study.memorisation import Memorisation, memorisation
from patchindex.study.metrics import accuracy, pearson_r, r2, rmse
from patchindex.study.originality import originality
from patchindex.study.originality_results import Originality
from patchindex.study.theory import TheoryOptions, theory
from patchindex.study.theory_results import Theory

__all__ = [
    "Calibration",
    "CalibrationOptions",
    "FeatureCounts",
    "Memorisation",
    "Originality",
    "Study",
    "Theory",
    "TheoryOptions",
    "accuracy",
    "calibrate",
    "compare",
    "count_features",
    "count_holes",
    "count_limbs",
    "count_strokes",
    "draw_figures",
    "memorisation",
    "originality",
    "pearson_r",
    "r2",
    "replace_scales",
    "rmse",
    "theory",
]
