"""`msa`: a measurement systems analysis of a CSV file or of the record, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend import __version__
from backend.api import catalogue
from backend.assurance.msa import Agreement, Repeatability, Share, Study
from backend.assurance.msa_page import page
from backend.assurance.studies import analysed, of_records, read_csv
from backend.assurance.words import Language
from backend.base.files import disk_errors, utc_now, write_atomic, write_json
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.records.repeats import seen_parts
from backend.tools.records import opened
from backend.tools.terminal import say, sentence


def analyse(path: Path | None, key: ModelKey, batch: str | None, *, out: Path, language: Language) -> None:
    """Analyse a study and write msa.json and msa.html.

    Without `path`: the recorded inspections of `key` that have a part_id, or those of `batch` among them.

    Raises:
        StudyNotUsable, RecordsOff, RecordsUnavailable, DiskFull, ReadOnlyStore.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if path is not None:
        name, study = path.name, analysed(path.name, read_csv(path))
    else:
        of_record = catalogue.sentence(Phrase("study_of_records"), language)
        name = f"{key} · {of_record}" + (f" · {batch}" if batch else "")
        with opened() as ledger, ledger.reading() as connection:
            looks, threshold = of_records(seen_parts(connection, key, batch))
        study = analysed(name, looks, threshold)
    when = utc_now()
    write_json(out / "msa.json", {"study": name, "created_utc": when, "version": __version__, **as_dict(study)})
    shown = when[:16].replace("T", " ") + " UTC"
    html = page(study, language, catalogue.sentence, name=name, when=shown, version=__version__)
    write_atomic(out / "msa.html", lambda file: file.write(html.encode()))
    for notice in study.notices:
        say("warning", sentence(notice))
    say(name, f"{out / 'msa.html'}, {out / 'msa.json'}")


def as_dict(study: Study) -> dict[str, Any]:
    """A study as JSON holds it."""
    return {
        **({"repeatability": _score(study.repeatability)} if study.repeatability else {}),
        **({"agreement": _agreement(study.agreement)} if study.agreement else {}),
        "notices": [{"code": one.code, "values": dict(one.values)} for one in study.notices],
    }


def _score(one: Repeatability) -> dict[str, Any]:
    known = {} if one.threshold is None else {"threshold": one.threshold, "doubtful": one.doubtful}
    return {
        "n_parts": one.n_parts,
        "n_scores": one.n_scores,
        "within": one.within,
        "within_low": one.low,
        "within_high": one.high,
        "between": one.between,
        "share": one.share,
        "ndc": one.ndc,
        "judgement": one.judgement,
        **known,
    }


def _agreement(one: Agreement) -> dict[str, Any]:
    rows = [
        {
            "name": own.name,
            "within": own.within,
            "kappa_within": own.kappa_within,
            "effectiveness": own.effectiveness,
            "misses": own.misses,
            "false_alarms": own.false_alarms,
            "kappa": own.kappa,
            "judgement": own.judgement,
        }
        for own in one.appraisers
    ]
    whole = {"all_agree": one.all_agree, "all_right": one.all_right, "kappa": one.kappa}
    return {
        "n_parts": one.n_parts,
        "n_trials": one.n_trials,
        **_told(whole),
        "appraisers": [_told(row) for row in rows],
        "pairs": [{"names": list(pair.names), "counts": pair.counts, "kappa": pair.kappa} for pair in one.pairs],
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What is known of it."""
    known = {name: value for name, value in row.items() if value is not None}
    return {name: value.as_dict() if isinstance(value, Share) else value for name, value in known.items()}
