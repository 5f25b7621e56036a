"""How alike two maps of the same image are. NumPy and SciPy only."""

import numpy as np
import pandas as pd
from scipy import stats
from skimage.metrics import structural_similarity

from fl_utils.explain.baselines import normalised

#: Side of the window of SSIM: 3.5 standard deviations of 1.5 pixels each way, as in Wang et al. 2004.
SSIM_WINDOW_PX = 11


def similarity(a: np.ndarray, b: np.ndarray) -> pd.DataFrame:
    """How alike two maps of the same image are, for every image.

    Args:
      a, b: float [N, H, W], at least 0; H and W at least SSIM_WINDOW_PX.
    Returns:
      N rows: ssim (of the maps divided by their maxima; Gaussian window), rank_correlation (Spearman's, over pixels;
      blind to scale), reason. Both are NaN where a map is constant, for it ranks nothing, and `reason` says which;
      else it is "".
    Raises:
      ValueError: shapes that differ or are too small, negative or non-finite values.
    Source: SSIM of Wang et al. 2004, doi:10.1109/TIP.2003.819861, by scikit-image; both as in Adebayo et al. 2018.
    """
    scaled_a, scaled_b = normalised(a)[0], normalised(b)[0]
    if scaled_a.shape != scaled_b.shape or min(scaled_a.shape[1:]) < SSIM_WINDOW_PX:
        raise ValueError(
            f"Maps {scaled_a.shape} and {scaled_b.shape}; expected the same shape, and at least {SSIM_WINDOW_PX} "
            "pixels a side."
        )
    rows = []
    for one, other in zip(scaled_a, scaled_b, strict=True):
        constant = [name for name, values in (("first", one), ("second", other)) if np.ptp(values) == 0]
        if constant:
            rows.append((np.nan, np.nan, f"constant map: {' and '.join(constant)}"))
            continue
        ssim = structural_similarity(
            one, other, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        rows.append((float(ssim), float(stats.spearmanr(one, other, axis=None).statistic), ""))
    return pd.DataFrame(rows, columns=["ssim", "rank_correlation", "reason"])
