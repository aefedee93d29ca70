"""What a prediction of the ResNet18 web API becomes in the record."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from backend import __version__
from backend.base.config import Settings
from backend.records.ledger import Ledger, Recorded
from backend.records.notices import as_json
from backend.records.record import Record
from backend.records.verdicts import Trace
from backend.resnet_api.pictures import Polygon
from backend.resnet_api.predictor import Prediction
from backend.service.images import ImageFile

ROLE, ROI = "resnet18", "predict"  # the web API has one bank, and no roles


@dataclass(frozen=True)
class PredictionVerdict:
    """One prediction of one image, under the recipe that the request names."""

    file: ImageFile
    found: Prediction
    recipe_id: str
    settings: Settings

    def record(self, ledger: Ledger, trace: Trace) -> Recorded:
        """Record it, with its image if the policy wants it. Raises NotRecorded: only if the record is required."""
        data, found, settings = self.file.read(), self.found, self.settings
        height, width = found.size
        record = Record(
            role_id=ROLE,
            roi_id=ROI,
            recipe_id=self.recipe_id,
            **asdict(trace),
            score=found.score,
            threshold=found.threshold,
            decision="ng" if found.is_anomaly else "ok",
            image_name=self.file.name,
            image_sha256=hashlib.sha256(data).digest(),
            image_size=len(data),
            height=height,
            width=width,
            generation=str(found.bank.get("generation", "")),
            fingerprint=f"resnet18/{found.bank.get('embedding_version', '')}",
            service_version=__version__,
            scoring={
                "method": "max",
                "k": settings.knn_k,
                "img_size": settings.img_size,
                "patch_stride": settings.patch_stride,
                "ignore_border_pct": settings.ignore_border_pct,
                "roi_path": settings.roi_path or "",
                "area_min": settings.area_min,
            },
            regions=[self._region(polygon) for polygon in found.polygons],
            warnings=[as_json(notice) for notice in found.warnings],
            timings_ms=found.timings_ms,
            token_map=found.token_map,
        )
        return ledger.record(record, data)

    def _region(self, polygon: Polygon) -> dict[str, Any]:
        """An outline in pixels of the sent image; how large one of them is nobody said, so there are no mm²."""
        height, width = self.found.size
        scale = np.array([width, height]) / self.settings.img_size
        points = np.rint(np.array(polygon) * scale).astype(np.int32)
        area = float(cv2.contourArea(points))
        return {"bbox": list(cv2.boundingRect(points)), "area_px": area, "contour": points.tolist()}
