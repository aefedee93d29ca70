"""`versions`, `restore` and `teach`: what a model was before, and what it is taught, as those routes do it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from getpass import getuser
from typing import Any

import typer

from backend.api.answers import proof_fields, restored_fields, taught_fields, version_fields
from backend.assurance.golden import GoldenSet, record_flips
from backend.assurance.teaching import Lesson, Promise, Teacher
from backend.assurance.watch import remember
from backend.base.config import load_settings
from backend.base.errors import MemoryNotFound
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.records.ledger import Ledger
from backend.records.verdicts import checked_text
from backend.samples.collector import Collector
from backend.service.jobs import Job
from backend.storage import Change
from backend.tools.offline import Session, warn
from backend.tools.terminal import print_table, say, sentence


@dataclass(frozen=True)
class Desk:
    """The models, samples and records that the settings name, in this process."""

    collector: Collector
    golden: GoldenSet
    ledger: Ledger | None
    session: Session

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Desk]:
        """A desk. Raises RecordsRefused."""
        settings = load_settings()
        ledger = Ledger.of(settings)
        try:
            collector = Collector(settings)
            golden = GoldenSet(collector.inspector, collector.samples, partial(record_flips, ledger))
            collector.inspector.gate = golden
            with Session(settings, collector.inspector) as session:
                yield cls(collector, golden, ledger, session)
        finally:
            if ledger is not None:
                ledger.close()

    def job(self) -> Job:
        """A job whose stages are bars."""
        return self.session.job()


def change_of(event: str, author: str, note: str) -> Change:
    """What is done to a model, by whom (this account without a name), and what they noted. Raises InvalidValue."""
    who = checked_text(author, "author") or getuser()
    return Change(event, who, checked_text(note, "note", 2000, lines=True) or "")


def versions(key: ModelKey, *, as_json: bool) -> None:
    """Print the model in use and what was replaced before it, the newest first. Raises MemoryNotFound, DamagedFile."""
    with Desk.opened() as desk:
        inspector = desk.collector.inspector
        known = version_fields(inspector.store, inspector.host.queue().extractor, key)
    if "current" not in known and not known["versions"]:
        raise MemoryNotFound(key=key)
    if as_json:
        typer.echo(json.dumps(known))
        return
    rows = [_version(one) for one in known["versions"]]
    if "current" in known:
        rows.insert(0, _version({**known["current"], "version": "in use"}))
    print_table(["version", "model", "made", "images", "threshold", "replaced", "by", "note", "restorable"], rows)


def restore(key: ModelKey, name: str, change: Change, *, as_json: bool) -> None:
    """Bring a version back, bit for bit. Raises what Inspector.restore does."""
    with Desk.opened() as desk:
        version, notices = desk.collector.inspector.restore(key, name, change)
    said = restored_fields(version)
    warn(notices)
    if as_json:
        typer.echo(json.dumps({**said, "warnings": _words(notices)}))
    say(str(key), f"{version.name} is in use again, model version {said.get('model_version', '?')}")


def teach(key: ModelKey, lesson: Lesson, change: Change, *, dry_run: bool, as_json: bool) -> bool:
    """Teach, or with `dry_run` say what that would change; whether nothing speaks against it, or it was forced.

    Raises what Teacher.teach and Teacher.prove do.
    """
    notices: list[Notice] = []
    did: dict[str, Any] = {}
    with Desk.opened() as desk:
        teacher = Teacher(desk.collector, desk.golden, desk.ledger)
        if dry_run:
            proof = teacher.prove(key, lesson, desk.job())
        else:
            done = teacher.teach(key, lesson, change, desk.job())
            proof, notices, did = done.proof, done.notices, taught_fields(done)
            remember(desk.collector.inspector.store, key, done.metadata, done.appearances)
    told = proof_fields(proof, "en")
    said = [*proof.notices, *notices]
    warn(said)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, **told, **did, "warnings": _words(said)}))
    else:
        rows = [*told["taught"], *told["missed"], *told["changes"]]
        print_table(["part", "kind", "must be", "score", "verdict", "score then", "verdict then"], _rows(rows))
        for one in rows:
            if "error" in one:
                say("error", one["error"])
    for objection in told["objections"]:
        say("objection", objection)
    say("promise", f"{_promised(proof.before)} before, {_promised(proof.after)} with it")
    passing = f"{told['n_would_pass']} of {len(proof.taught)} parts pass with it"
    end = f"model version {did['model_version']}" if did else "nothing was changed"
    say(str(key), f"{told['n_taught']} new images, {passing}; {end}")
    return lesson.force or not proof.objections


def _rows(parts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            str(one.get("inspection_id", one.get("filename"))),
            one["kind"],
            one["expected"],
            *(_cell(one.get(name)) for name in ("score", "decision", "score_after", "decision_after")),
        ]
        for one in parts
    ]


def _version(one: Mapping[str, Any]) -> list[str]:
    by = one.get("replaced_by", {})
    return [
        one["version"],
        str(one.get("model_version", "")),
        _when(one.get("created_utc")),
        str(one.get("n_images", "")),
        _cell(one.get("calibration", {}).get("threshold")),
        _when(one.get("replaced_utc")),
        " ".join(by[name] for name in ("event", "author") if by.get(name)),
        by.get("note", one.get("note", "")),
        "" if "restorable" not in one else "yes" if one["restorable"] else "no",
    ]


def _promised(promise: Promise) -> str:
    known = promise.false_reject
    rejected = f", at most {100 * known.upper_bound:.3g} % of good parts rejected" if known else ""
    return f"threshold {promise.threshold:.4f}{rejected}"


def _when(text: str | None) -> str:
    return (text or "")[:19].replace("T", " ")


def _cell(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4f}"


def _words(notices: Sequence[Notice]) -> list[str]:
    return [sentence(one) for one in notices]
