"""The field's figures for scores and anomaly maps: AUROC, AP, F1-max, AUPRO, and what a calibration would do.

Arrays in, numbers out: no file and no setting is read here. AUROC, AP and the curves are scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from backend.calib import choose_threshold

Labels = NDArray[np.bool_]
Scores = NDArray[np.floating]
FPR_LIMIT = 0.3


@dataclass(frozen=True)
class ImageFigures:
    """AUROC, average precision and the best F1 over all thresholds, each 0–1; `threshold` is where F1 is best."""

    auroc: float
    ap: float
    f1_max: float
    threshold: float


@dataclass(frozen=True)
class PixelFigures:
    """Pixel AUROC and AUPRO up to a false positive rate of 30 %, each 0–1."""

    auroc: float
    aupro: float


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval: the 2.5th and 97.5th percentile."""

    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """What thresholds do to other parts than those they were chosen from, as means over many draws of the latter.

    n_ok, n_ng: good and bad parts that each threshold was chosen from. `false_reject`, `miss`: shares (0–1) of the
    other good parts above the threshold, and of the other bad ones not above it. The ranges hold nine draws in ten.
    """

    n_ok: int
    n_ng: int
    threshold: float
    false_reject: float
    miss: float
    false_reject_range: tuple[float, float]
    miss_range: tuple[float, float]


def image_figures(defective: Labels, scores: Scores) -> ImageFigures:
    """Figures of image scores.

    Args:
        defective: (n,) bool, with both kinds present.
        scores: (n,) larger is worse.
    """
    precision, recall, thresholds = precision_recall_curve(defective, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    return ImageFigures(
        auroc=float(roc_auc_score(defective, scores)),
        ap=float(average_precision_score(defective, scores)),
        f1_max=float(f1[best]),
        threshold=float(thresholds[best]),
    )


def roc_points(defective: Labels, scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC curve: shares of good images at or above each threshold, and of defective ones."""
    false, true, _ = roc_curve(defective, scores)
    return np.asarray(false, np.float64), np.asarray(true, np.float64)


def pixel_figures(masks: Sequence[Labels], maps: Sequence[Scores], *, limit: float = FPR_LIMIT) -> PixelFigures | None:
    """Figures of anomaly maps against defect masks of the same shapes; None without both kinds of pixel.

    Args:
        masks: of each image (h, w) bool, True where the defect is.
        maps: of each image (h, w) distances, larger is worse.

    AUPRO (Bergmann et al. 2021, The MVTec Anomaly Detection Dataset, section 5.3): the mean share of each connected
    component (8 neighbours) that is found, integrated over the false positive rate up to `limit`, over `limit`.
    """
    defective = np.concatenate([mask.ravel() for mask in masks])
    if defective.all() or not defective.any():
        return None
    gain = np.concatenate([_share_of_component(mask).ravel() for mask in masks])
    values = np.concatenate([np.asarray(m, np.float32).ravel() for m in maps])
    order = np.argsort(-values, kind="stable")
    values, defective, gain = values[order], defective[order], gain[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    found = np.append(0.0, np.cumsum(defective, dtype=np.int64)[last])
    false = np.append(0.0, np.cumsum(~defective, dtype=np.int64)[last])
    overlap = np.append(0.0, np.cumsum(gain, dtype=np.float64)[last])
    fpr = false / false[-1]
    auroc = float(np.trapezoid(found / found[-1], fpr))
    return PixelFigures(auroc, area_until(fpr, overlap / overlap[-1], limit) / limit)


def area_until(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoid area under (x, y), x ascending from 0, up to x = `limit`, with y interpolated there."""
    inside = x <= limit
    stop = float(np.interp(limit, x, y))
    return float(np.trapezoid(np.append(y[inside], stop), np.append(x[inside], limit)))


def _share_of_component(mask: Labels) -> NDArray[np.float64]:
    """Each defective pixel's share of its component's area; 0 elsewhere."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    share = np.zeros(count)
    share[1:] = 1.0 / stats[1:, cv2.CC_STAT_AREA]
    spread: NDArray[np.float64] = share[labels]
    return spread


def auroc_interval(defective: Labels, scores: Scores, rng: np.random.Generator, *, draws: int = 2000) -> Interval:
    """Bootstrap interval (95 %) of the image AUROC.

    Each draw takes as many good parts as there are, with replacement, and as many defective ones.

    Args:
        defective: (n,) bool, with both kinds present.
        scores: (n,) larger is worse.
    """
    good, bad = scores[~defective], scores[defective]
    wins = (bad[:, None] > good[None, :]) + 0.5 * (bad[:, None] == good[None, :])
    of_good = rng.multinomial(len(good), np.full(len(good), 1 / len(good)), size=draws) / len(good)
    of_bad = rng.multinomial(len(bad), np.full(len(bad), 1 / len(bad)), size=draws) / len(bad)
    drawn = np.einsum("db,bg,dg->d", of_bad, wins, of_good, optimize=True)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))


def rates_under_change(
    ok: Scores,
    changed_ok: Scores,
    changed_ng: Scores,
    *,
    rng: np.random.Generator,
    draws: int = 200,
    percentile: float = 99,
    margin: float = 0.0,
) -> tuple[float, float]:
    """Rates of good parts rejected and bad ones missed under a change that the threshold was not chosen under.

    Each draw chooses a threshold from half of the good parts, as they are, and judges the changed pictures of the other
    half and of the bad ones. The rates (0–1) are means over the draws.

    Args:
        ok, changed_ok: (n,) scores of at least two good parts, in the same order.
        changed_ng: (m,) scores of changed bad parts.
        percentile, margin: as `calib.choose_threshold` takes them.
    """
    half, seen = len(ok) // 2, []
    for _ in range(draws):
        order = rng.permutation(len(ok))
        chosen = choose_threshold(list(ok[order[:half]]), [], percentile=percentile, margin=margin).value
        seen.append((np.mean(changed_ok[order[half:]] > chosen), np.mean(changed_ng <= chosen)))
    rejected, missed = np.mean(seen, axis=0)
    return float(rejected), float(missed)


def calibration_rates(
    ok: Scores,
    ng: Scores,
    *,
    n_ok: int,
    n_ng: int,
    rng: np.random.Generator,
    draws: int = 200,
    percentile: float = 99,
    margin: float = 0.0,
) -> Rates:
    """Choose a threshold from `n_ok` good and `n_ng` bad parts drawn at random and judge the others, `draws` times.

    Args:
        ok, ng: (n,) scores of good and bad parts that the memory has not seen; more than n_ok and n_ng of them.
        percentile, margin: as `calib.choose_threshold` takes them.

    Raises:
        ValueError: a draw would leave no part to judge.
    """
    if not (0 < n_ok < len(ok) and 0 <= n_ng < len(ng)):
        raise ValueError(f"{n_ok} OK of {len(ok)} and {n_ng} NG of {len(ng)} leave nothing to judge")
    seen = []
    for _ in range(draws):
        good, bad = rng.permutation(ok), rng.permutation(ng)
        chosen = choose_threshold(list(good[:n_ok]), list(bad[:n_ng]), percentile=percentile, margin=margin)
        rejected, missed = np.mean(good[n_ok:] > chosen.value), np.mean(bad[n_ng:] <= chosen.value)
        seen.append((chosen.value, float(rejected), float(missed)))
    mean = np.mean(seen, axis=0)
    low, high = np.percentile(seen, [5, 95], axis=0)
    return Rates(
        n_ok=n_ok,
        n_ng=n_ng,
        threshold=float(mean[0]),
        false_reject=float(mean[1]),
        miss=float(mean[2]),
        false_reject_range=(float(low[1]), float(high[1])),
        miss_range=(float(low[2]), float(high[2])),
    )
