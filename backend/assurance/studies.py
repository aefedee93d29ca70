"""The parts, pictures and ratings of a study, from a CSV file or from the record, and what they say."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.assurance.msa import FEW_PARTS, Agreement, Ratings, Study, agreement, repeatability
from backend.base.errors import StudyNotUsable
from backend.base.messages import Notice, Phrase
from backend.records.repeats import Seen

GOOD = frozenset({"ok", "good", "pass", "1", "true", "go", "bueno", "buena", "bien", "conforme"})
BAD = frozenset({"ng", "ko", "bad", "fail", "0", "false", "nogo", "no-go", "nok", "malo", "mala", "mal", "no conforme"})
COLUMNS = {
    "part": ("part", "part_id", "pieza"),
    "appraiser": ("appraiser", "operator", "inspector", "evaluador", "operario"),
    "rating": ("rating", "verdict", "decision", "result", "resultado", "veredicto"),
    "reference": ("reference", "standard", "referencia", "patron"),
    "score": ("score", "puntuacion"),
    "image": ("image", "file", "filename", "imagen", "fichero"),
    "sha256": ("sha256", "image_sha256"),
}
SERVICE = "service"
_NAMED = 5


@dataclass(frozen=True)
class Look:
    """One picture or one look at a part.

    Attributes:
        part: which part.
        appraiser: who rated; SERVICE for this program.
        good: the rating; None if there is none.
        reference: whether the part is good; None where nobody says.
        score: None if there is none.
        picture: what names the picture's content; empty if that is not known.
    """

    part: str
    appraiser: str = SERVICE
    good: bool | None = None
    reference: bool | None = None
    score: float | None = None
    picture: str = ""


def read_csv(path: Path) -> list[Look]:
    """The looks of a CSV file whose first line names the columns; see COLUMNS, of which `part` must be there.

    Comma, semicolon and tab separate, and decimals may take a comma where it does not. A picture in the column `image`
    that lies beside the file is known by its content.

    Raises:
        StudyNotUsable.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_bytes().decode("cp1252", "replace")
    first = text.partition("\n")[0]
    separator = max(";\t,", key=first.count)
    lines = csv.reader(io.StringIO(text), delimiter=separator)
    names = [name.strip().lower() for name in next(lines, [])]
    known = {own: names.index(name) for own, spelled in COLUMNS.items() for name in spelled if name in names}
    if "part" not in known or not known.keys() & {"rating", "score"}:
        raise StudyNotUsable(path=path.name, reason=Phrase("study_columns", {"found": ", ".join(names)[:120] or "–"}))
    looks = []
    for number, line in enumerate(lines, start=2):
        cells = {own: line[at].strip() for own, at in known.items() if at < len(line)}
        if any(cell for cell in cells.values()):
            looks.append(_look(path, number, cells))
    return looks


def _look(path: Path, line: int, cells: Mapping[str, str]) -> Look:
    part = cells.get("part", "")
    if not part:
        raise StudyNotUsable(path=path.name, reason=Phrase("study_no_part", {"line": line}))
    picture = cells.get("sha256", "").lower()
    image = path.parent / cells.get("image", "")
    if not picture and cells.get("image") and image.is_file():
        picture = hashlib.sha256(image.read_bytes()).hexdigest()
    return Look(
        part,
        cells.get("appraiser") or SERVICE,
        _rating(path, line, cells.get("rating", "")),
        _rating(path, line, cells.get("reference", "")),
        _score(path, line, cells.get("score", "")),
        picture,
    )


def _rating(path: Path, line: int, text: str) -> bool | None:
    if not text:
        return None
    word = text.lower()
    if word not in GOOD | BAD:
        raise StudyNotUsable(path=path.name, reason=Phrase("study_rating", {"line": line, "value": repr(text[:40])}))
    return word in GOOD


def _score(path: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise StudyNotUsable(path=path.name, reason=Phrase("study_score", {"line": line, "value": repr(text[:40])}))
    return score


def of_records(seen: Sequence[Seen]) -> tuple[list[Look], float | None]:
    """The looks of recorded inspections, oldest first, and the last threshold.

    What people said of a part in reviews is its reference; the last word counts.
    """
    said = {one.part_id: one.good for one in sorted(seen, key=lambda one: one.said_us) if one.good is not None}
    looks = [
        Look(
            one.part_id,
            SERVICE,
            None if one.decision is None else one.decision == "ok",
            said.get(one.part_id),
            one.score,
            one.image_sha256,
        )
        for one in seen
    ]
    thresholds = [one.threshold for one in seen if one.threshold is not None]
    return looks, thresholds[-1] if thresholds else None


def analysed(name: str, looks: Sequence[Look], threshold: float | None = None) -> Study:
    """What a study says.

    A picture that was looked at before by the same appraiser shows no variance and is left out, with a notice.

    Args:
        name: of the study, for errors.
        threshold: the one that verdicts were made with, if it is known.

    Raises:
        StudyNotUsable.
    """
    fresh, again = _fresh(looks)
    notices: list[Notice] = []
    if again:
        names = ", ".join(list(dict.fromkeys(look.part for look in again))[:_NAMED])
        notices.append(Notice("study_same_picture", {"n": len(again), "parts": names}))
    rated = _of_study([look for look in fresh if look.good is not None])
    repeated = _repeated(fresh)
    found = repeatability(repeated, threshold)
    if found is None and all(look.appraiser == SERVICE for look in rated):
        no_variance = len(repeated) >= 2
        raise StudyNotUsable(path=name, reason=Phrase("study_no_variance" if no_variance else "study_no_repeats"))
    if all(look.appraiser == SERVICE and look.reference is None for look in rated):
        return Study(None, found, [*notices, *([Notice("study_no_reference")] if rated else [])])
    made, more = _agreement(name, rated)
    return Study(made, found, [*notices, *more])


def _of_study(rated: Sequence[Look]) -> Sequence[Look]:
    """Of the service alone, whose record has every part, those that were seen several times; of people, all.

    If only some of the service's parts have a reference, these are the study.
    """
    if any(look.appraiser != SERVICE for look in rated):
        return rated
    several = Counter(look.part for look in rated)
    repeated = [look for look in rated if several[look.part] > 1]
    known = {look.part for look in repeated if look.reference is not None}
    return [look for look in repeated if look.part in known] if known else repeated


def _repeated(looks: Sequence[Look]) -> list[list[float]]:
    """The scores of each part that has several."""
    scores: dict[str, list[float]] = defaultdict(list)
    for look in looks:
        if look.score is not None:
            scores[look.part].append(look.score)
    return [own for own in scores.values() if len(own) > 1]


def _agreement(name: str, rated: Sequence[Look]) -> tuple[Agreement, list[Notice]]:
    ratings, reference = _tables(name, rated)
    notices: list[Notice] = []
    if len(ratings) == 1:
        if reference is None:
            raise StudyNotUsable(path=name, reason=Phrase("study_one_appraiser_alone"))
        notices.append(Notice("study_one_appraiser"))
    if reference is None:
        notices.append(Notice("study_no_reference"))
    elif reference.min() == reference.max():
        notices.append(Notice("study_one_kind"))
    made = agreement(ratings, reference)
    if made.n_parts < FEW_PARTS:
        notices.append(Notice("study_few_parts", {"n": made.n_parts, "wanted": FEW_PARTS}))
    return made, notices


def _fresh(looks: Iterable[Look]) -> tuple[list[Look], list[Look]]:
    """Looks at a picture that the appraiser had not seen, and the others."""
    seen: set[tuple[str, str]] = set()
    fresh: list[Look] = []
    again: list[Look] = []
    for look in looks:
        known = bool(look.picture) and (look.appraiser, look.picture) in seen
        (again if known else fresh).append(look)
        seen.add((look.appraiser, look.picture))
    return fresh, again


def _tables(name: str, looks: Sequence[Look]) -> tuple[dict[str, Ratings], Ratings | None]:
    """Ratings (parts, trials) of each appraiser, and the reference (parts,). Raises StudyNotUsable."""
    by: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for look in looks:
        by[look.appraiser][look.part].append(int(bool(look.good)))
    parts = list(dict.fromkeys(look.part for look in looks))
    counts = Counter(len(own[part]) for own in by.values() for part in parts)
    if by.keys() == {SERVICE}:  # a record has what it has: each part as often as the one that was seen least
        trials = min(counts)
    else:
        trials = counts.most_common(1)[0][0]
        _refuse_unequal(name, by, trials)
    ratings = {
        appraiser: np.array([own[part][:trials] for part in parts], np.int64) for appraiser, own in sorted(by.items())
    }
    return ratings, _reference(name, looks, parts)


def _refuse_unequal(name: str, by: Mapping[str, Mapping[str, Sequence[int]]], trials: int) -> None:
    for appraiser, own in by.items():
        for part, rated in own.items():
            if len(rated) != trials or not trials:
                unequal = {"appraiser": appraiser, "part": part, "n": len(rated), "wanted": trials}
                raise StudyNotUsable(path=name, reason=Phrase("study_unequal", unequal))


def _reference(name: str, looks: Sequence[Look], parts: Sequence[str]) -> Ratings | None:
    said: dict[str, bool] = {}
    for look in looks:
        if look.reference is None:
            continue
        if said.setdefault(look.part, look.reference) != look.reference:
            raise StudyNotUsable(path=name, reason=Phrase("study_reference_differs", {"part": look.part}))
    if not said:
        return None
    missing = next(_missing(parts, said), None)
    if missing is not None:
        raise StudyNotUsable(path=name, reason=Phrase("study_reference_missing", {"part": missing}))
    return np.array([said[part] for part in parts], np.int64)


def _missing(parts: Sequence[str], said: Mapping[str, bool]) -> Iterator[str]:
    return (part for part in parts if part not in said)
