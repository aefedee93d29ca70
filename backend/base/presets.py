"""Presets: settings that together are somebody's published method, or what this project recommends.

A preset fills in what nobody set: the environment, `.env` and `config.yaml` go before it.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["none", "reference", "anomalydino", "patchcore", "recommended"]

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # The customer's own note: DINOv2 ViT-S/14, blocks 9 and 11, 448², coreset 2 %, k = 1, light blur, p99.
    "reference": {
        "input_size": 448,
        "patchcore_patch_size": 1,
        "resnet_offset": 0.0,
        "coreset_rate": 0.02,
        "patchcore_knn_k": 1,
        "score_method": "percentile",
        "score_percentile": 99.0,
        "blur_sigma": 1.0,
    },
    # Damm et al. 2025, AnomalyDINO (WACV): the last block's tokens of every good image, smaller edge 448, cosine
    # distance, mean of the 1 % of tokens farthest from the good ones; no preprocessing ("agnostic").
    "anomalydino": {
        "blocks": ("-1",),
        "input_size": 448,
        "input_edge": "smaller",
        "patchcore_patch_size": 1,
        "coreset_rate": 1.0,
        "max_coreset": 10_000_000,
        "patchcore_distance": "cosine",
        "patchcore_knn_k": 1,
        "score_method": "top_mean",
        "score_map": "tokens",
        "score_top_share": 0.01,
        "blur_sigma": 4.0,
    },
    # Roth et al. 2022, PatchCore (CVPR): layer2 and layer3 averaged over 3×3, greedy coreset, the farthest patch,
    # weighed by equation 7 with nine neighbours.
    "patchcore": {
        "model_name": "resnet18",
        "input_size": 224,
        "patchcore_patch_size": 3,
        "coreset_rate": 0.1,
        "patchcore_knn_k": 1,
        "patchcore_reweight": 9,
        "score_method": "max",
        "score_map": "tokens",
        "blur_sigma": 4.0,
    },
    # For convolutional networks; a ViT has _RECOMMENDED_VIT. The evidence is in docs/ACCURACY.md: a maximum that hears
    # the runners-up, so small defects count and large ones count more, and places where good parts vary much count for
    # less.
    "recommended": {
        "resnet_offset": 1.6,
        "coreset_rate": 0.03,
        "patchcore_knn_k": 1,
        "patchcore_density_k": 9,
        "score_method": "power_mean",
        "score_power": 32.0,
        "score_map": "tokens",
        "token_blur": 0.75,
    },
}

# Models whose features are those of a convolutional network, or measured beside them; all others are ViTs.
_CONVOLUTIONAL = ("resnet", "wide_resnet", "lite", "texture")
# `recommended` for a ViT: what was never below the default on the mean of the sets. Density was, at 224, and so was
# AnomalyDINO's mean of the 1 % farthest tokens, at 448.
_RECOMMENDED_VIT: dict[str, Any] = {"score_method": "power_mean", "score_power": 32.0, "score_map": "tokens"}


def preset_for(name: str, model_name: str) -> dict[str, Any]:
    """The settings that preset `name` stands for with a model; none for a name that is no preset's."""
    if name == "recommended" and not model_name.startswith(_CONVOLUTIONAL):
        return _RECOMMENDED_VIT
    return PRESETS.get(name, {})
