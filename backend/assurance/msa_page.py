"""A study of a measurement system as one HTML page: A4, in Spanish or English, with fields to sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from html import escape

from backend.assurance.msa import (
    KAPPA_GOOD,
    KAPPA_POOR,
    Agreement,
    Appraiser,
    Repeatability,
    Share,
    Study,
    judged_effectiveness,
    judged_false_alarms,
    judged_misses,
)
from backend.assurance.msa_words import PAGE
from backend.assurance.paper import PAPER
from backend.assurance.studies import SERVICE
from backend.assurance.words import Language
from backend.base.messages import Notice

Say = Callable[[Notice, Language], str]
SIGNED_BY = ("made", "checked", "approved")
_OWN_STYLE = """
.facts th { width: 75mm; }
.number, td span.small { white-space: nowrap; }
.acceptable { color: #1b6e3c; }
.marginal { color: #8a5a00; }
.unacceptable { color: #a3231f; }
.crossed { display: grid; grid-template-columns: repeat(3, 1fr); gap: 2mm 6mm; }
.crossed > div { break-inside: avoid; }
.signing { break-inside: avoid; }
.signing table { width: calc(100% - 0.5mm); }
.signing td { height: 9mm; border: 0.2mm solid #999; padding: 1mm 2mm; width: 25%; }
.signing th { border: 0.2mm solid #999; padding: 1mm 2mm; }
"""


def page(study: Study, language: Language, say: Say, *, name: str, when: str, version: str) -> str:
    """The page of a study.

    Args:
        say: the sentence of a notice.
        name: what was studied; `when` and with which `version` of the program.
    """
    return _Page(study, language, say).html(name, when, version)


@dataclass(frozen=True)
class _Page:
    study: Study
    language: Language
    say: Say

    def html(self, name: str, when: str, version: str) -> str:
        agreed, repeated = self.study.agreement, self.study.repeatability
        sections = [
            self.short(),
            self.repeatability(repeated) if repeated else "",
            self.agreement(agreed) if agreed else "",
            self.notices(),
            self.signing(),
        ]
        return (
            f'<!doctype html>\n<html lang="{self.language}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width">\n<title>{self.w("title")}</title>\n'
            f"<style>{PAPER}{_OWN_STYLE}</style>\n</head>\n<body>\n<h1>{self.w('title')}</h1>\n"
            f'<p class="by">{escape(name)} · {self.w("made_on", when=when, version=version)}</p>\n'
            + "\n".join(filter(None, sections))
            + "\n</body>\n</html>\n"
        )

    def w(self, name: str, /, **values: object) -> str:
        """Words, ready for HTML."""
        es, en = PAGE[name]
        return escape((es if self.language == "es" else en).format(**values))

    def number(self, value: float, digits: int) -> str:
        """A number as it is written here, halves rounded up as by hand."""
        text = str(Decimal(str(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
        return text.replace(".", ",") if self.language == "es" else text

    def share(self, one: Share) -> str:
        """A share in per cent, its counts and its interval."""
        if not one.n:
            return "–"
        low, high = (self.number(100 * end, 1) for end in one.interval)
        return f"{self.number(100 * one.value, 1)} % ({one.k}/{one.n}) <span class='small'>{low} – {high}</span>"

    def short(self) -> str:
        lines = []
        repeated, agreed = self.study.repeatability, self.study.agreement
        if repeated:
            lines.append(
                self.w(
                    f"short_score_{repeated.judgement}",
                    share=self.number(100 * repeated.share, 1),
                    ndc=repeated.ndc,
                )
            )
        for one in agreed.appraisers if agreed else ():
            judgement = one.judgement
            if judgement:
                lines.append(self.w(f"short_{judgement}", name=self.name(one.name)))
        if agreed and not any(one.judgement for one in agreed.appraisers):
            lines.append(self.w("short_agree", share=self.number(100 * agreed.all_agree.value, 1)))
        return f'<div class="short">{"".join(f"<p>{line}</p>" for line in lines)}</div>'

    def name(self, appraiser: str) -> str:
        """Of an appraiser."""
        return self.w("service") if appraiser == SERVICE else appraiser

    def repeatability(self, one: Repeatability) -> str:
        def f(value: float) -> str:
            return self.number(value, 4)

        facts = [
            ("parts_scores", f"{one.n_parts} · {one.n_scores}"),
            ("within", f"{f(one.within)} <span class='small'>{f(one.low)} – {f(one.high)}</span>"),
            ("between", f(one.between)),
            ("ev", f"{self.number(100 * one.share, 1)} %"),
            ("ndc", str(one.ndc)),
            ("judged", f'<span class="{one.judgement}">{self.w(one.judgement)}</span>'),
        ]
        if one.threshold is not None:
            facts.insert(5, ("doubtful", f"{f(one.threshold)} ± {f(one.doubtful)}"))
        return (
            f"<h2>{self.w('repeatability')}</h2><p>{self.w('repeatability_is')}</p>"
            f"{self.facts(facts)}<p class='small'>{self.w('score_criteria')}</p>"
        )

    def facts(self, rows: Sequence[tuple[str, str]]) -> str:
        """A table of names and values."""
        lines = "".join(f"<tr><th>{self.w(name)}</th><td>{value}</td></tr>" for name, value in rows)
        return f'<table class="facts">{lines}</table>'

    def agreement(self, one: Agreement) -> str:
        facts = [
            ("parts_trials", f"{one.n_parts} · {len(one.appraisers)} · {one.n_trials}"),
            ("all_agree", self.share(one.all_agree)),
        ]
        if one.all_right is not None:
            facts.append(("all_right", self.share(one.all_right)))
        if one.kappa is not None:
            facts.append(("fleiss", self.number(one.kappa, 2)))
        said = f"<h2>{self.w('agreement')}</h2>{self.facts(facts)}{self.appraisers(one.appraisers)}"
        if one.pairs:
            pairs = "".join(
                f"<div><h3>{escape(self.name(p.names[0]))} × {escape(self.name(p.names[1]))}: "
                f"κ {self.number(p.kappa, 2)}</h3>{self.crossed(p.names, p.counts)}</div>"
                for p in one.pairs
            )
            said += f'<h2>{self.w("between_appraisers")}</h2><div class="crossed">{pairs}</div>'
        good, poor = (self.number(limit, 2) for limit in (KAPPA_GOOD, KAPPA_POOR))
        return said + f"<p class='small'>{self.w('kappa_criteria', good=good, poor=poor)}</p>"

    def appraisers(self, appraisers: Sequence[Appraiser]) -> str:
        """One line for each, and AIAG's criteria."""
        names = ["appraiser", "itself", "effectiveness", "misses", "false_alarms", "kappa", "judged"]
        head = "".join(f"<th>{self.w(name)}</th>" for name in names)
        lines = "".join(
            f"<tr><td>{escape(self.name(one.name))}</td><td>{self.share(one.within)}</td>"
            + "".join(
                "<td>–</td>" if rate is None else f'<td class="{judge(rate.value)}">{self.share(rate)}</td>'
                for rate, judge in (
                    (one.effectiveness, judged_effectiveness),
                    (one.misses, judged_misses),
                    (one.false_alarms, judged_false_alarms),
                )
            )
            + f"<td>{'–' if one.kappa is None else self.number(one.kappa, 2)}</td>"
            + (f'<td class="{one.judgement}">{self.w(one.judgement)}</td></tr>' if one.judgement else "<td>–</td></tr>")
            for one in appraisers
        )
        criteria = f"<p class='small'>{self.w('criteria')}</p>" if any(one.judgement for one in appraisers) else ""
        return f"<h3>{self.w('each')}</h3><table><tr>{head}</tr>{lines}</table>{criteria}"

    def crossed(self, names: tuple[str, str], counts: Sequence[Sequence[int]]) -> str:
        """Decisions of two."""
        bad, good = self.w("bad"), self.w("good")
        first, second = (escape(self.name(name)) for name in names)
        head = f"<tr><th></th><th class='number'>{second}: {bad}</th><th class='number'>{good}</th></tr>"
        lines = "".join(
            f"<tr><td>{first}: {word}</td>" + "".join(f"<td class='number'>{n}</td>" for n in row) + "</tr>"
            for word, row in zip((bad, good), counts, strict=True)
        )
        return f"<table>{head}{lines}</table>"

    def notices(self) -> str:
        if not self.study.notices:
            return ""
        lines = "".join(f"<li>{escape(self.say(one, self.language))}</li>" for one in self.study.notices)
        return f"<h2>{self.w('notices')}</h2><ul>{lines}</ul>"

    def signing(self) -> str:
        """Fields to fill in by hand."""
        columns = ("", "person", "date", "signature")
        head = "".join(f"<th>{self.w(name) if name else ''}</th>" for name in columns)
        lines = "".join(f"<tr><th>{self.w(name)}</th>{'<td></td>' * 3}</tr>" for name in SIGNED_BY)
        about = "".join(
            f"<tr><th>{self.w(name)}</th><td colspan='3'></td></tr>" for name in ("gauge", "characteristic")
        )
        return f'<div class="signing"><h2>{self.w("signing")}</h2><table>{about}<tr>{head}</tr>{lines}</table></div>'
