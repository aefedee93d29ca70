"""A certificate as one HTML page: A4, in Spanish or English, without a network, a script or a font to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

from backend.assurance.certificate import notices_of
from backend.assurance.defects import GRADES, KINDS, ZONES
from backend.assurance.detection import FEWEST
from backend.assurance.paper import PAPER
from backend.assurance.words import Language, words
from backend.base.messages import Notice

WORTH_SAYING = 0.1  # a rate of rejects from which a change is named on the first lines

_BAR = 260  # px
_COLOURS = {"clear": "#1f5fa8", "faint": "#b4690e"}
_OWN_STYLE = """
.identity th { width: 48mm; }
.identity td { overflow-wrap: anywhere; }
.kind { break-inside: avoid; }
.kind table { font-size: 8.5pt; line-height: 1.3; }
.lead { break-after: avoid; break-inside: avoid; }
.row { display: flex; gap: 3mm; align-items: flex-start; }
.row figure { margin: 0; text-align: center; font-size: 8pt; color: #555; }
.row figure img { display: block; width: 24mm; height: 24mm; object-fit: cover; }
.row figure:has(img) { width: 27mm; }
.suspects { display: grid; grid-template-columns: 1fr 1fr; gap: 2mm 4mm; }
.suspect { break-inside: avoid; overflow-wrap: anywhere; }
.suspect img { width: 40mm; height: auto; }
svg { display: block; }
svg text { font: 7pt system-ui, "Segoe UI", Arial, sans-serif; fill: #444; }
.swatch { display: inline-block; width: 4mm; height: 1mm; vertical-align: middle; margin-right: 1mm; }
"""

Certificate = Mapping[str, Any]
Say = Callable[[Notice, Language], str]


def page(certificate: Certificate, language: Language, say: Say) -> str:
    """The page of what `certificate.certify` gave.

    `say`: the sentence of a notice.
    """
    return _Page(certificate, language, say).html()


@dataclass(frozen=True)
class _Page:
    made: Certificate
    language: Language
    say: Say

    def html(self) -> str:
        model = "/".join(self.made["model"][name] for name in ("role_id", "roi_id"))
        recipe = self.made["model"]["recipe_id"]
        model += "" if recipe == "default" else f" ({recipe})"
        title = f"{self.w('title')} · {escape(model)}"
        sections = [
            self.short(),
            self.identity(),
            self.rejects(),
            self.detection(),
            self.suspects(),
            self.stability(),
            self.not_said(),
            self.notices(),
        ]
        when = _moment(self.made["created_utc"])
        return (
            f'<!doctype html>\n<html lang="{self.language}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
            f"<style>{PAPER}{_OWN_STYLE}</style>\n</head>\n<body>\n<h1>{self.w('title')}</h1>\n"
            f'<p class="by">{self.w("of", model=model)} · '
            f"{self.w('made', when=when, version=self.made['service_version'])}</p>\n"
            + "\n".join(filter(None, sections))
            + "\n</body>\n</html>\n"
        )

    def w(self, name: str, **values: object) -> str:
        """Words, ready for HTML."""
        return escape(words(name, self.language, **values))

    def number(self, value: float, digits: int = 3, *, up: bool = False) -> str:
        """A number as it is written here, with so many significant digits; `up`: rounded up, for what is assured."""
        if up and value:
            unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
            value = math.ceil(value / unit - 1e-9) * unit
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
        text = f"{float(text):.9f}".rstrip("0").rstrip(".") if "e" in text else text
        return text.replace(".", ",") if self.language == "es" else text

    def percent(self, share: float, *, up: bool = False) -> str:
        """A share in per cent, without the sign."""
        return self.number(100 * share, 2 if up else 3, up=up)

    def short(self) -> str:
        """What there is to say in a few lines."""
        promise = self.made["calibration"].get("false_reject")
        lines = []
        if promise:
            bound = self.percent(promise["upper_bound"], up=True)
            confidence = self.percent(promise["confidence"])
            lines.append(f"<p>{self.w('short_reject', bound=bound, confidence=confidence)}</p>")
        if missed := self.made["calibration"].get("misses"):
            n = missed["n_ng"]
            lines.append(f"<p>{self.w('short_misses', n=n, missed=round(missed['estimate'] * n))}</p>")
        found, not_found, too_few = self.smallest_found()
        if found:
            items = "".join(
                f"<li>{self.w(f'kind_{kind}')}: <b>{self.size(kind, mm2, mm)}</b></li>" for kind, mm2, mm in found
            )
            lines.append(f"<p>{self.w('short_finds')}</p><ul>{items}</ul>")
        if not_found:
            kinds = ", ".join(words(f"kind_{kind}", self.language) for kind in not_found)
            lines.append(f"<p>{self.w('short_not', kinds=kinds)}</p>")
        if too_few:
            kinds = ", ".join(words(f"kind_{kind}", self.language) for kind in too_few)
            lines.append(f"<p>{self.w('short_few', kinds=kinds)}</p>")
        lines.append(self.short_suspects())
        changes = [one for one in self.made["stability"] if one["what"] != "none"]
        worst = max(changes, key=lambda one: one["rate"])
        if worst["rate"] > WORTH_SAYING:
            rate = self.percent(worst["rate"])
            lines.append(f"<p>{self.w('short_fragile', change=self.change(worst), rate=rate)}</p>")
        else:
            lines.append(f"<p>{self.w('short_sturdy')}</p>")
        return f'<section class="short"><h2>{self.w("in_short")}</h2>{"".join(lines)}</section>'

    def smallest_found(self) -> tuple[list[tuple[str, float, float]], list[str], list[str]]:
        """Of each kind the size from which clear defects are found in every zone, in mm² and mm.

        Then the kinds of which no size is, and those of which too few were tried to tell.
        """
        found, not_found, too_few = list[tuple[str, float, float]](), list[str](), list[str]()
        for kind in KINDS:
            clear = [c for c in self.curves() if c["kind"] == kind and c["grade"] == "clear"]
            if clear and all("a90_95_mm2" in curve for curve in clear):
                worst = max(clear, key=lambda curve: curve["a90_95_mm2"])
                found.append((kind, worst["a90_95_mm2"], worst["a90_95_mm"]))
            elif any(curve["n"] >= FEWEST and "a90_95_mm2" not in curve for curve in clear):
                not_found.append(kind)
            elif clear:
                too_few.append(kind)
        return found, not_found, too_few

    def curves(self) -> Sequence[Mapping[str, Any]]:
        """What was found of each kind, zone and grade."""
        return list(self.made["detection"]["curves"])

    def size(self, kind: str, mm2: float, mm: float) -> str:
        """A size in mm² and as a length."""
        across = "long" if kind == "scratch" else "across"
        return f"{self.number(mm2, up=True)}\u00a0mm² ({self.w(across, mm=self.number(mm, up=True))})"

    def short_suspects(self) -> str:
        """One line about suspects; nothing where nobody looked for them."""
        looked = self.made.get("suspects")
        if looked is None:
            return ""
        names = ", ".join(part["filename"] for part in looked["parts"][:5])
        words_of = self.w("short_suspects", names=names) if names else self.w("short_no_suspects", n=looked["n_images"])
        return f"<p>{words_of}</p>"

    def identity(self) -> str:
        """Who the model is."""
        model, calibration = self.made["model"], self.made["calibration"]
        rule = self.w(
            f"rule_{calibration.get('rule', 'percentile')}",
            percentile=self.number(calibration.get("score_percentile", 99)),
        )
        scoring = model["scoring"]
        scored = words(f"scored_{scoring['method']}", self.language, percentile=self.number(scoring["percentile"], 4))
        grid = " × ".join(str(n) for n in model.get("token_shape", []))
        rows = [
            ("generation", model["generation"]),
            ("model_version", model.get("model_version", "")),
            ("fitted", _moment(model.get("created_utc", ""))),
            ("extractor", model.get("extractor", "")),
            ("fingerprint", model.get("fingerprint", "")),
            ("input", f"{model.get('input_size', '')} px, {grid}"),
            ("rows", model.get("coreset_size", "")),
            ("n_images", len(model["samples"])),
            ("samples_hash", model["samples_sha256"]),
            ("scored_by", scored),
            ("smallest", f"{self.number(model['area_mm2_thr'])} mm²"),
            ("scale", f"{self.number(calibration.get('mm_per_px', 1.0))} mm/px"),
        ]
        table = "".join(f"<tr><th>{self.w(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
        table += f"<tr><th>{self.w('threshold')}</th><td>{self.number(calibration['threshold'], 5)}, {rule}</td></tr>"
        if note := calibration.get("note"):
            table += f"<tr><th>{self.w('note')}</th><td>{escape(note)}</td></tr>"
        text = self.w("identity_text", n=len(model["samples"]))
        return f'<section><h2>{self.w("identity")}</h2><p>{text}</p><table class="identity">{table}</table></section>'

    def rejects(self) -> str:
        """The promise about good parts, what was seen, and what was missed."""
        calibration, parts, said = self.made["calibration"], self.made["parts"], []
        if promise := calibration.get("false_reject"):
            said.append(
                self.w(
                    "rejects_text",
                    estimate=round(promise["estimate"] * promise["n_ok"]),
                    n=promise["n_ok"],
                    basis=words(f"basis_{promise['basis']}", self.language),
                    bound=self.percent(promise["upper_bound"], up=True),
                    confidence=self.percent(promise["confidence"]),
                )
            )
            if needed := promise.get("n_ok_needed"):
                aim = self.number(100.0 - float(calibration.get("score_percentile", 99)), 2)
                said[-1] += " " + self.w("rejects_needed", aim=aim, needed=needed)
        basis = words(f"basis_{parts['basis']}", self.language)
        seen = self.w("rejects_seen", n=parts["n"], basis=basis, rejected=parts["n_rejected"])
        said.append(f"{seen} {self.w('rejects_same')}")
        if missed := calibration.get("misses"):
            said.append(
                self.w(
                    "misses_text",
                    n=missed["n_ng"],
                    missed=round(missed["estimate"] * missed["n_ng"]),
                    low=self.percent(missed["lower_bound"]),
                    high=self.percent(missed["upper_bound"]),
                    confidence=self.percent(missed["confidence"]),
                )
            )
        labels = words("score", self.language), words("threshold", self.language)
        picture = _histogram(parts["scores"], calibration["threshold"], labels, self.number)
        text = "".join(f"<p>{one}</p>" for one in [*said, self.w("scores_text")])
        return f"<section><h2>{self.w('rejects')}</h2>{text}{picture}</section>"

    def detection(self) -> str:
        """The curves by kind and zone, and the sizes that are assured."""
        found = self.made["detection"]
        mm_per_px = self.number(self.made["calibration"].get("mm_per_px", 1.0))
        head = self.w("detects_text", parts=found["n_parts"], trials=found["trials"])
        zones = self.w(f"zones_of_{found['zones_of']}")
        how = f"{zones} {self.w('detects_px', mm_per_px=mm_per_px)}"
        read = self.w("detects_read")
        text = f"<p>{head} {how}</p><p>{read}</p><p class='small lead'>{self.legend()}</p>"
        examples = {one["kind"]: one for one in found["examples"]}
        kinds = [
            self.kind(kind, list(curves), examples.get(kind))
            for kind, curves in groupby(self.curves(), key=lambda curve: curve["kind"])
        ]
        return f"<section><h2>{self.w('detects')}</h2>{text}{''.join(kinds)}</section>"

    def legend(self) -> str:
        """Which colour is which grade."""
        return " &nbsp; ".join(
            f'<span class="swatch" style="background:{_COLOURS[grade]}"></span>{self.w(f"grade_{grade}")}'
            for grade in GRADES
        )

    def kind(self, kind: str, curves: Sequence[Mapping[str, Any]], example: Mapping[str, Any] | None) -> str:
        """One kind of defect: an example, a picture for each zone, and the table."""
        figure = ""
        if example:
            size = f"{self.number(example['area_mm2'])} mm²"
            figure = (
                f'<figure><img alt="" src="data:image/jpeg;base64,{example["jpeg_base64"]}">'
                f"{self.w('example', size=size)}</figure>"
            )
        label = words("share_found", self.language)
        by_zone = {zone: [curve for curve in curves if curve["zone"] == zone] for zone in ZONES}
        pictures = "".join(
            f"<figure>{_curves(of_zone, self.number, label)}{self.w(f'zone_{zone}')}</figure>"
            for zone, of_zone in by_zone.items()
        )
        rows = "".join(self.curve_row(curve) for curve in curves)
        head = (
            f"<tr><th>{self.w('zone')}</th><th></th><th class='number'>{self.w('found')}</th>"
            "<th class='number'>a50</th><th class='number'>a90</th><th class='number'>a90/95</th></tr>"
        )
        return (
            f'<div class="kind"><h3>{self.w(f"kind_{kind}").capitalize()}</h3><div class="row">{figure}{pictures}</div>'
            f"<table>{head}{rows}</table></div>"
        )

    def curve_row(self, curve: Mapping[str, Any]) -> str:
        """A line of the table of one kind."""
        if "a90_95_mm2" in curve:
            assured = f"<b>{self.size(curve['kind'], curve['a90_95_mm2'], curve['a90_95_mm'])}</b>"
        elif curve["n"] >= FEWEST:
            assured = self.w("never", largest=f"{self.number(curve['largest_mm2'])} mm²")
        else:
            assured = self.w("few")
        likely = [f"{self.number(curve[name])} mm²" if name in curve else "–" for name in ("a50_mm2", "a90_mm2")]
        cells = [f"{curve['n_found']}/{curve['n']}", *likely, assured]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        zone, grade = self.w(f"zone_{curve['zone']}"), self.w(f"grade_{curve['grade']}")
        return f"<tr><td>{zone}</td><td>{grade}</td>{numbers}</tr>"

    def suspects(self) -> str:
        """The samples that stand out, with their pictures; nothing where nobody looked for them."""
        looked = self.made.get("suspects")
        if looked is None:
            return ""
        if not looked["parts"]:
            text = f"<p>{self.w('suspects_none', n=looked['n_images'])}</p>"
            return f"<section><h2>{self.w('suspects')}</h2>{text}</section>"
        shown = "".join(
            f'<div class="suspect"><h3>{escape(part["filename"])} · '
            f"{self.w('suspect_times', times=self.number(part['times'], 2))}</h3>"
            + "".join(
                f'<img alt="" src="data:image/jpeg;base64,{part[name]}"> '
                for name in ("jpeg_base64", "heatmap_jpeg_base64")
            )
            + "</div>"
            for part in looked["parts"]
        )
        text = f'<p class="lead">{self.w("suspects_text")}</p>'
        return f'<section><h2>{self.w("suspects")}</h2>{text}<div class="suspects">{shown}</div></section>'

    def stability(self) -> str:
        """What each change does to the rate of rejects."""
        rows = "".join(
            f"<tr><td>{escape(self.change(one)).capitalize()}</td><td>{_bar(one['rate'], one['upper_bound'])}</td>"
            f'<td class="number">{one["n_rejected"]}/{one["n"]}</td></tr>'
            for one in self.made["stability"]
        )
        head = f"<tr><th></th><th>{_scale()}</th><th class='number'>{self.w('rejected')}</th></tr>"
        text = f"<p>{self.w('stability_text')}</p><table>{head}{rows}</table>"
        return f"<section><h2>{self.w('stability')}</h2>{text}</section>"

    def change(self, one: Mapping[str, Any]) -> str:
        """A change in words."""
        what, amount = one["what"], one["amount"]
        if what == "light":
            shown = f"{100 * amount:+.0f}".replace("-", "−")
        else:
            shown = self.number(100 * amount if what == "shift" else amount, 2)
        return words(f"change_{what}", self.language, amount=shown)

    def not_said(self) -> str:
        """What nobody may read into it."""
        points = ["not_real", "not_future", "not_labels", "not_pointwise"]
        points += ["not_whole"] if self.made["parts"]["n_rejected"] else []
        points += ["not_leave_one_out"] if self.made["parts"]["basis"] == "leave_one_out" else []
        items = "".join(f"<li>{self.w(name)}</li>" for name in points)
        return f"<section><h2>{self.w('not_said')}</h2><ul>{items}</ul></section>"

    def notices(self) -> str:
        """What the service had to say while it was made."""
        said = dict.fromkeys(escape(self.say(notice, self.language)) for notice in notices_of(self.made))
        items = "".join(f"<li>{text}</li>" for text in said)
        return f"<section><h2>{self.w('notices')}</h2><ul>{items}</ul></section>" if items else ""


def _curves(curves: Sequence[Mapping[str, Any]], number: Callable[[float], str], label: str) -> str:
    """An SVG of probability of detection over area, on a logarithmic axis, each grade a line and a band below it."""
    width, height, left, bottom, top = 172, 108, 26, 22, 6
    drawn = [curve for curve in curves if curve["n"]]
    if not drawn:
        return f'<svg width="{width}" height="{height}"></svg>'
    ends = [area for curve in drawn for area in (curve["points"]["mm2"][0], curve["points"]["mm2"][-1])]
    low, high = np.log10(min(ends)), np.log10(max(ends))

    def at(area: float, share: float) -> str:
        x = left + (np.log10(area) - low) / max(high - low, 1e-9) * (width - left - 4)
        return f"{x:.1f},{top + (1 - share) * (height - top - bottom):.1f}"

    parts = [
        f'<path d="M{at(10**low, share)} L{at(10**high, share)}" stroke="#ddd" stroke-width="0.6"/>'
        f'<text x="{left - 3}" y="{float(at(10**low, share).split(",")[1]) + 2.5:.1f}" text-anchor="end">{text}</text>'
        for share, text in ((0.0, "0"), (0.5, "50 %"), (0.9, "90 %"))
    ]
    for area in _decades(low, high):
        x, y = at(area, 0).split(",")
        parts.append(f'<path d="M{x},{top} V{y}" stroke="#eee" stroke-width="0.6"/>')
        anchor = "end" if float(x) > width - 12 else "middle"
        parts.append(f'<text x="{x}" y="{height - bottom + 9}" text-anchor="{anchor}">{number(area)}</text>')
    for curve in drawn:
        colour, points = _COLOURS[curve["grade"]], curve["points"]
        line = " L".join(at(a, p) for a, p in zip(points["mm2"], points["pod"], strict=True))
        bound = [at(a, p) for a, p in zip(points["mm2"], points["lower_bound"], strict=True)]
        parts.append(f'<path d="M{line} L{" L".join(reversed(bound))} Z" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    parts.append(f'<text x="{width - 4}" y="{height - 3}" text-anchor="end">mm²</text>')
    parts.append(f"<title>{escape(label)}</title>")
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _decades(low: float, high: float) -> Iterable[float]:
    """Powers of ten between two logarithms, or two round numbers where there are fewer than two."""
    found = [10.0**n for n in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    if len(found) > 1:
        return found
    round_numbers = [float(f"{10 ** (low + share * (high - low)):.1g}") for share in (0.15, 0.85)]
    return [area for area in round_numbers if low <= np.log10(area) <= high]


def _histogram(
    scores: Sequence[float], threshold: float, labels: tuple[str, str], number: Callable[[float], str]
) -> str:
    """An SVG of the good scores and the threshold; `labels` name the axis and the threshold."""
    width, height, top, bottom = 640, 110, 12, 16
    low, high = min([*scores, threshold]), max([*scores, threshold])
    low, high = low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9)
    counts, edges = np.histogram(scores, bins=40, range=(low, high))
    most = max(1, int(counts.max()))

    def x(value: float) -> float:
        return float((value - low) / (high - low) * width)

    def tall(n: int) -> float:
        return n / most * (height - top - bottom)

    bars = "".join(
        f'<rect x="{x(edge):.1f}" y="{height - bottom - tall(n):.1f}" width="{width / 40 - 1:.1f}" '
        f'height="{tall(n):.1f}" fill="#7a9cc6"/>'
        for n, edge in zip(counts.tolist(), edges.tolist(), strict=False)
        if n
    )
    at, side = x(threshold), "end" if threshold > (low + high) / 2 else "start"
    line = f'<path d="M{at:.1f},0 V{height - bottom}" stroke="#b02a2a" stroke-width="2"/>'
    line += (
        f'<text x="{at + (-5 if side == "end" else 5):.1f}" y="8" text-anchor="{side}">'
        f"{escape(labels[1])} {number(threshold)}</text>"
    )
    ends = "".join(
        f'<text x="{at}" y="{height - 4}" text-anchor="{anchor}">{number(value)}</text>'
        for at, anchor, value in ((0, "start", low), (width, "end", high))
    )
    middle = f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(labels[0])}</text>'
    ground = f'<path d="M0,{height - bottom} H{width}" stroke="#bbb" stroke-width="0.6"/>'
    return f'<svg width="100%" viewBox="0 0 {width} {height}" role="img">{bars}{ground}{line}{ends}{middle}</svg>'


def _scale() -> str:
    """An SVG of the marks above a column of bars."""
    marks = "".join(
        f'<text x="{share * _BAR:.0f}" y="8" text-anchor="{anchor}">{share:.0%}</text>'.replace("%", "\u00a0%")
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    return f'<svg width="{_BAR}" height="10" role="img">{marks}</svg>'


def _moment(utc: str) -> str:
    """A time as people write it, to the minute."""
    return f"{utc[:16].replace('T', ' ')} UTC" if utc else ""


def _bar(rate: float, bound: float) -> str:
    """An SVG of a rate from 0 to 1, and a line up to its bound."""
    width = _BAR
    return (
        f'<svg width="{width}" height="10" role="img"><rect width="{width}" height="10" fill="#f0f0f0"/>'
        f'<rect width="{rate * width:.1f}" height="10" fill="#b4690e"/>'
        f'<path d="M{rate * width:.1f},5 H{bound * width:.1f}" stroke="#444" stroke-width="1"/></svg>'
    )
