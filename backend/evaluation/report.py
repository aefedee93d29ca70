"""The report of an evaluation: one HTML file with its pictures inside, which needs no network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.images import encode_jpeg, resize, to_base64
from backend.calib import choose_threshold
from backend.evaluation.figures import Rates, roc_points
from backend.evaluation.pictures import overlay
from backend.evaluation.results import FewShot, Figures, ScoredImage, SetResult, Shown, UnderChange
from backend.evaluation.sets import LabelledImage
from backend.infer import Inspection
from backend.service.images import ImageFile, decoded

PICTURE_WIDTH = 640
PICTURE_QUALITY = 88

HEADINGS = {
    "miss": "Defective parts that score lowest",
    "false alarm": "Good parts that score highest",
    "class": "A typical part of each class",
}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #2f6f9f; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin-top: 1.6rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.plots img { max-width: 100%; background: #fff; border-radius: 6px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 12px; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; }
figcaption { font-size: .82rem; overflow-wrap: anywhere; }
.note { opacity: .75; font-size: .88rem; } code { font-size: .88em; }
"""


def html_report(results: Sequence[SetResult], *, title: str = "Evaluation", command: str = "") -> str:
    """A self-contained HTML page of `results`: figures, histograms, ROC curves and pictures as data URIs."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        f"<p class=note><code>{escape(command)}</code></p>" if command else "",
        _table(SUMMARY, [summary_row(result) for result in results]),
        *[_section(result) for result in results],
        "</body></html>",
    ]
    return "\n".join(parts)


SUMMARY = [
    "set", "model", "image AUROC", "95 %", "AP", "F1-max", "pixel AUROC", "AUPRO 30 %",
    "fit s", "ms/image", "memory MB",
]  # fmt: skip

FIGURES = ["image AUROC", "AP", "F1-max", "pixel AUROC", "AUPRO 30 %"]
RATES = ["calibrated with", "threshold", "good rejected", "range", "defects missed", "range"]
CHANGES = ["change", "image AUROC", "good rejected", "defects missed"]
HOW_CHANGES = (
    "The memory and the threshold are those of the pictures as they are; the threshold is chosen from half of the good "
    "test parts, the rates are those of the other parts; means over repeated draws."
)
HOW_RATES = (
    "The threshold is chosen from the parts drawn, the rates are those of the other parts; means over repeated draws, "
    "and the range of nine draws in ten."
)


def worth_showing(scored: Sequence[ScoredImage], *, each: int = 6) -> list[tuple[str, ScoredImage]]:
    """The images of a report, each with the key of its heading.

    `miss`: the `each` bad ones that score lowest. `false alarm`: the `each` good ones that score highest. `class`: of
    each class the one whose score is in the middle.
    """
    good = sorted((s for s in scored if not s.image.defective), key=lambda s: s.score, reverse=True)
    bad = sorted((s for s in scored if s.image.defective), key=lambda s: s.score)
    kinds: dict[str, list[ScoredImage]] = {}
    for s in (*reversed(good), *bad):
        kinds.setdefault(s.image.label, []).append(s)
    typical = [("class", of_kind[len(of_kind) // 2]) for of_kind in kinds.values()]
    return [("miss", s) for s in bad[:each]] + [("false alarm", s) for s in good[:each]] + typical


def side_by_side(image: LabelledImage, found: Inspection, options: ImageOptions | None = None) -> bytes:
    """JPEG of the ROI with the defect's mask outlined and, to its right, of the same under its anomaly map.

    `options`: how its file is read.
    """
    height, width = found.anomaly_map.shape
    with decoded(ImageFile(image.path.name, image.path.read_bytes), options) as (_, seen):
        plain = resize(seen.pixels, height, width)
    low, high = (float(v) for v in np.percentile(found.anomaly_map, [1, 99.9]))
    heated = overlay(
        plain, found.anomaly_map, low=low, high=max(high, low), score=found.score, threshold=None, mask=found.roi.mask
    )
    left = plain.copy()
    defect = image.defect(height, width).astype(np.uint8)
    outline, _ = cv2.findContours(defect, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(left, outline, -1, (255, 255, 255), max(1, width // 200))
    left = resize(left, round(height * heated.shape[1] / width), heated.shape[1])
    left = cv2.copyMakeBorder(left, 0, max(0, heated.shape[0] - left.shape[0]), 0, 4, cv2.BORDER_CONSTANT)
    pair = np.hstack([left[: heated.shape[0]], heated])
    scale = min(1.0, PICTURE_WIDTH / pair.shape[1])
    return encode_jpeg(
        resize(pair, round(pair.shape[0] * scale), round(pair.shape[1] * scale)), quality=PICTURE_QUALITY
    )


def summary_row(result: SetResult) -> list[str]:
    """The figures of one result as text, under SUMMARY."""
    image, pixels, cost = result.figures.image, result.figures.pixels, result.cost
    return [
        result.set_name,
        result.model,
        f"{image.auroc:.4f}",
        f"{result.interval.low:.3f}–{result.interval.high:.3f}",
        f"{image.ap:.4f}",
        f"{image.f1_max:.4f}",
        f"{pixels.auroc:.4f}" if pixels else "–",
        f"{pixels.aupro:.4f}" if pixels else "–",
        f"{cost.fit_s:.1f}",
        f"{cost.inspect_ms:.0f}",
        f"{cost.memory_mb:.1f}",
    ]


def _section(result: SetResult) -> str:
    counts = ", ".join(f"{n} {escape(kind)}" for kind, n in result.counts.items())
    settings = ", ".join(f"{name}={_value(value)}" for name, value in result.settings.items())
    return "\n".join(
        [
            f"<h2>{escape(result.set_name)} · {escape(result.model)}</h2>",
            f"<p>Fitted on {result.n_train} good parts; tested on {counts}.</p>",
            f"<p class=note>{escape(settings)}</p>",
            *[f"<p><strong>Warning.</strong> {escape(warning)}</p>" for warning in result.warnings],
            f'<div class=plots><img alt="histogram of the scores, and ROC" src="{_plots(result)}"></div>',
            *[_listing(listing) for listing in listings(result)],
            *[_gallery(why, result) for why in HEADINGS],
        ]
    )


@dataclass(frozen=True)
class Listing:
    """A table of figures, with a title and a note on how to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def listings(result: SetResult) -> list[Listing]:
    """The figures of a result beyond its summary: by class, of calibrations, and with few good parts if asked for."""
    classes = [_class_row(kind, result.counts[kind], found) for kind, found in result.classes.items()]
    every = [
        Listing("Classes", ["class", "images", *FIGURES], classes),
        Listing("What a calibration would do", RATES, [_rates_row(rates) for rates in result.rates], HOW_RATES),
        Listing(
            "Under changes that were not learnt", CHANGES, [_changed_row(one) for one in result.changed], HOW_CHANGES
        ),
        Listing("With few good parts", ["good parts", *FIGURES], [_few_row(few) for few in result.few]),
    ]
    return [listing for listing in every if listing.rows]


def _rates_row(rates: Rates) -> list[str]:
    return [
        f"{rates.n_ok} OK, {rates.n_ng} NG",
        f"{rates.threshold:.4f}",
        f"{rates.false_reject:.1%}",
        f"{rates.false_reject_range[0]:.1%}–{rates.false_reject_range[1]:.1%}",
        f"{rates.miss:.1%}",
        f"{rates.miss_range[0]:.1%}–{rates.miss_range[1]:.1%}",
    ]


def _changed_row(found: UnderChange) -> list[str]:
    rates = (found.false_reject, found.miss)
    return [found.change, f"{found.auroc:.4f}", *("–" if rate is None else f"{rate:.1%}" for rate in rates)]


def _few_row(few: FewShot) -> list[str]:
    values = (few.auroc, few.ap, few.f1_max, few.pixel_auroc, few.aupro)
    return [f"{few.shots} ({few.draws} draws)", *(f"{v[0]:.4f} ± {v[1]:.4f}" if v else "–" for v in values)]


def _listing(listing: Listing) -> str:
    note = f"<p class=note>{escape(listing.note)}</p>" if listing.note else ""
    return f"<h3>{escape(listing.title)}</h3>{note}" + _table(listing.header, listing.rows)


def _class_row(kind: str, n: int, figures: Figures) -> list[str]:
    image, pixels = figures.image, figures.pixels
    more = [f"{pixels.auroc:.4f}", f"{pixels.aupro:.4f}"] if pixels else ["–", "–"]
    return [kind, str(n), f"{image.auroc:.4f}", f"{image.ap:.4f}", f"{image.f1_max:.4f}", *more]


def _gallery(why: str, result: SetResult) -> str:
    chosen = [shown for shown in result.shown if shown.why == why]
    return f"<h3>{HEADINGS[why]}</h3><div class=pictures>{''.join(map(_figure, chosen))}</div>" if chosen else ""


def _figure(shown: Shown) -> str:
    name = f"{shown.image.label}/{shown.image.path.name}"
    source = _data_uri(shown.jpeg, "jpeg")
    caption = f"{escape(name)} · {shown.score:.4f}"
    return (
        f'<figure><img loading="lazy" alt="{escape(name)}" src="{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _plots(result: SetResult) -> str:
    """Histogram of the scores with the threshold of OK parts alone, and the ROC curve: a PNG data URI."""
    defective = np.array([s.image.defective for s in result.scored])
    scores = np.array([s.score for s in result.scored])
    percentile = float(result.settings.get("SCORE_PERCENTILE", 99))
    threshold = choose_threshold(list(scores[~defective]), percentile=percentile).value
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    _histogram(left, scores, defective, threshold)
    right.plot(*roc_points(defective, scores), color="#2f6f9f")
    right.plot([0, 1], [0, 1], color="#999", linewidth=0.8, linestyle=":")
    right.set(xlabel="good parts rejected", ylabel="defects found", title=f"AUROC {result.figures.image.auroc:.4f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_uri(buffer.getvalue())


def _histogram(axes: Any, scores: NDArray[np.float64], defective: NDArray[np.bool_], threshold: float) -> None:
    bins = np.linspace(scores.min(), scores.max() or 1.0, 41)
    axes.hist(scores[~defective], bins, alpha=0.7, color="#3a8f4d", label="good")
    axes.hist(scores[defective], bins, alpha=0.6, color="#c0392b", label="defective")
    axes.axvline(threshold, color="#222", linestyle="--", linewidth=1, label=f"threshold {threshold:.4f}")
    axes.set(xlabel="score", ylabel="images", title="threshold calibrated from the good test parts, no NG")
    axes.legend()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _value(value: Any) -> str:
    if value is None or value == ():
        return "auto"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{to_base64(data)}"
