"""Which calibration applies: a threshold holds for the extractor and the scoring that its scores were made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backend.base.config import Settings
from backend.base.messages import Notice
from backend.infer import Scoring

FIT_SETTINGS = (
    "coreset_rate",
    "max_coreset",
    "seed",
    "patchcore_distance",
    "patchcore_memories",
    "foreground_mask",
)


def fit_settings_of(settings: Settings) -> dict[str, Any]:
    """The settings that a fit depends on, as the metadata of its memory holds them."""
    return {
        **{name: getattr(settings, name) for name in FIT_SETTINGS},
        "augment": {"rotation_deg": settings.augment_rotation_deg, "jitter": settings.augment_jitter},
    }


def settings_under(settings: Settings, fit_settings: Mapping[str, Any]) -> Settings:
    """`settings`, with those that an earlier fit was made with."""
    known = {name: fit_settings[name] for name in FIT_SETTINGS if name in fit_settings}
    augment = {f"augment_{name}": value for name, value in fit_settings.get("augment", {}).items()}
    return settings.model_copy(update=known | augment)


@dataclass(frozen=True)
class Applied:
    """The scoring, threshold (None: no verdict) and smallest region (mm²) that hold for an inspection."""

    scoring: Scoring
    threshold: float | None
    area_mm2_thr: float
    notices: list[Notice]


def scoring_id(scoring: Scoring) -> dict[str, Any]:
    """The part of a scoring that calib.json remembers beside its percentile."""
    own = {"method": scoring.method, "blur_sigma": scoring.blur_sigma, "k": scoring.k}
    names = ["where", "top_share", "reweight", "token_blur", "memory", "density"]
    names += ["power"] if scoring.method == "power_mean" else []
    further = {name: getattr(scoring, name) for name in names}
    return own | {name: value for name, value in further.items() if value != getattr(Scoring, name)}


def apply_calibration(
    calibration: Mapping[str, Any] | None,
    scoring: Scoring,
    *,
    area_mm2_thr: float,
    generation: str,
    fingerprint: str,
) -> Applied:
    """What of `calibration` holds now, for the memory `generation`, the extractor and the configured scoring.

    After a refit with the same extractor and scoring the threshold still serves, with a notice; when extractor or
    scoring changed it does not. A file of the older layout says neither and is taken at its word, with a notice.
    """
    if calibration is None:
        return Applied(scoring, None, area_mm2_thr, [Notice("not_calibrated")])
    area = float(calibration.get("area_mm2_thr", area_mm2_thr))
    own = replace(scoring, percentile=float(calibration.get("score_percentile", scoring.percentile)))
    threshold = float(calibration["threshold"])
    if "fingerprint" not in calibration:
        return Applied(own, threshold, area, [Notice("older_calibration")])
    if calibration["fingerprint"] != fingerprint or calibration.get("scoring") != scoring_id(scoring):
        return Applied(scoring, None, area, [Notice("calibration_stale")])
    same = calibration.get("generation") == generation
    return Applied(own, threshold, area, [] if same else [Notice("calibration_of_former_memory")])
