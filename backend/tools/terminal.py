"""What the command line shows of inspections: overlay pictures, a table, JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from backend.base.images import decode_image, encode_png, resize
from backend.evaluation.pictures import overlay
from backend.service.results import InferResult


def write_overlay(out: Path, path: Path, result: InferResult) -> Path:
    """Write `<folder>_<stem>_overlay.png` of the image at `path` into `out`, and return its path."""
    found = result.inspection
    image = resize(decode_image(path.read_bytes(), name=path.name), *found.anomaly_map.shape)
    low, high = result.heatmap_range
    scale = found.roi.size.scale
    outlines = [
        {"contour": [[x * scale, y * scale] for x, y in region.contour], "area_mm2": region.area_mm2}
        for region in found.regions
    ]
    picture = overlay(
        image,
        found.anomaly_map,
        low=low,
        high=max(high, result.threshold or 0.0),
        regions=outlines,
        score=found.score,
        threshold=result.threshold,
        decision=_decision(result),
        mask=found.roi.mask,
        title=path.name,
    )
    target = out / f"{path.parent.name}_{path.stem}_overlay.png"
    target.write_bytes(encode_png(picture))
    return target


def _decision(result: InferResult) -> str | None:
    return None if result.is_anomaly is None else "ng" if result.is_anomaly else "ok"


def row_of(path: Path, result: InferResult, picture: Path) -> dict[str, Any]:
    """One inspection as a flat JSON object."""
    return {
        "file": path.as_posix(),
        "score": result.inspection.score,
        "threshold": result.threshold,
        "decision": _decision(result),
        "regions": len(result.inspection.regions),
        "area_mm2": sum(region.area_mm2 for region in result.inspection.regions),
        "overlay": picture.as_posix(),
    }


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as JSON lines."""
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = Table("file", "score", "threshold", "verdict", "regions", "mm²", "overlay")
    for row in rows:
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.4f}"
        verdict = row["decision"] or "?"
        area = f"{row['area_mm2']:.1f}"
        table.add_row(row["file"], f"{row['score']:.4f}", threshold, verdict, str(row["regions"]), area, row["overlay"])
    Console().print(table)
