"""DriftWatch: every inspected part moves the charts of its model, in the background and for all workers together."""

from __future__ import annotations

import io
import logging
import threading
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cachetools import LRUCache

from backend.assurance.drift import Cause, Chart, Finding, distances_of, evidence_of, find
from backend.assurance.likeness import Float, features_of
from backend.assurance.reference import FEWEST, N_DISTANCES, VERSION, Reference
from backend.base.arrays import reading_arrays
from backend.base.config import Settings
from backend.base.errors import DriftNewer, InspectionError, MemoryNotFound
from backend.base.files import write_atomic
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.records.drifts import Drifts, KeptDrift, OwnDrifts, SharedDrifts, digest_of
from backend.records.ledger import Ledger
from backend.records.record import now_us
from backend.service.appearance import Appearance
from backend.service.results import InferResult
from backend.storage import ModelStore

logger = logging.getLogger(__name__)

FILE = "drift.npz"
PAUSE_S = 1.0
MOST_WAITING = 2048
LOCK_WAIT_S = 60.0
LEARNT = 2**31  # parts learnt from, once that is over
_TRIES = 20
_DAMAGED = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile)


CHANGED: dict[Cause, Phrase] = {
    "light": Phrase("drift_light"),
    "colour": Phrase("drift_colour"),
    "focus": Phrase("drift_focus"),
    "dirt": Phrase("drift_dirt"),
    "position": Phrase("drift_position"),
    "turn": Phrase("drift_turn"),
    "parts": Phrase("drift_parts"),
}
ADVICE: dict[Cause, Phrase] = {
    "light": Phrase("drift_advice_light"),
    "colour": Phrase("drift_advice_colour"),
    "focus": Phrase("drift_advice_focus"),
    "dirt": Phrase("drift_advice_dirt"),
    "position": Phrase("drift_advice_position"),
    "turn": Phrase("drift_advice_turn"),
    "parts": Phrase("drift_advice_parts"),
}
_PLACES = (
    ("place_upper_left", "place_upper_centre", "place_upper_right"),
    ("place_middle_left", "place_middle_centre", "place_middle_right"),
    ("place_lower_left", "place_lower_centre", "place_lower_right"),
)


@dataclass(frozen=True)
class Part:
    """What is kept of an inspected part until its turn comes.

    Attributes:
        distances: (N_DISTANCES,), see drift.distances_of.
        good: it was not found bad.
    """

    generation: str
    appearance: Appearance
    distances: Float
    good: bool
    time_us: int


@dataclass
class Watched:
    """What is known of one model: its reference, what it still learns from, and its charts.

    Attributes:
        pictures: of the first good parts, as long as there is no reference.
        rows: features and distances of the good parts after it; `learnt` counts both.
    """

    generation: str
    reference: Reference | None = None
    pictures: list[Part] = field(default_factory=list)
    rows: list[Float] = field(default_factory=list)
    learnt: int = 0
    chart: Chart = field(default_factory=Chart)

    def add(self, part: Part, wanted: int) -> None:
        """One more part; `wanted`: how many to learn from."""
        if self.reference is None:
            if part.good:
                self.pictures.append(part)
                self.learnt += 1
            if self.learnt >= FEWEST:
                made = Reference.of([one.appearance for one in self.pictures])
                self.reference = replace(made, distances=np.array([one.distances for one in self.pictures]))
                self.pictures = []
            return
        features = features_of(part.appearance, self.reference.placing)
        self.chart.add(self.reference.gauge, features, part.distances, part.time_us)
        if self.learnt < wanted and part.good and not self.chart.since_us:
            self.rows.append(np.concatenate([features, part.distances]))
            self.learnt += 1
            if self.learnt >= wanted:
                new = np.array(self.rows)
                self.reference = self.reference.joined(new[:, :-N_DISTANCES], new[:, -N_DISTANCES:])
                self.rows, self.learnt, self.chart = [], LEARNT, Chart()

    def finding(self, wanted: int) -> Finding:
        """What there is to say, without the evidence."""
        if self.reference is None:
            return Finding("learning", learnt=self.learnt, wanted=wanted, seen=self.learnt)
        found = find(self.chart, self.reference.gauge)
        if self.learnt < wanted:
            state = "drift" if found.state == "drift" else "learning"
            return replace(found, state=state, learnt=self.learnt, wanted=wanted)  # type: ignore[arg-type]
        return found

    def evidence(self) -> dict[str, float]:
        """How the last parts look beside the first ones."""
        return evidence_of(self.chart, self.reference.gauge) if self.reference and self.chart.seen else {}

    def learning(self) -> bytes:
        """What it still learns from, as an npz file; empty once it has learnt."""
        if self.learnt == LEARNT:
            return b""
        file = io.BytesIO()
        empty = np.zeros((0, 0))
        np.savez(
            file,
            learnt=np.int64(self.learnt),
            colour=np.array([one.appearance.colour for one in self.pictures] or empty, np.uint8),
            bands=np.array([one.appearance.bands for one in self.pictures] or empty, np.float32),
            distances=np.array([one.distances for one in self.pictures] or empty, np.float32),
            rows=np.array(self.rows or empty, np.float32),
        )
        return file.getvalue()

    @classmethod
    def read(cls, kept: KeptDrift, reference: Reference | None) -> Watched:
        """What is kept. Raises ValueError, KeyError, OSError, zipfile.BadZipFile: it is damaged."""
        if not kept.learnt:
            return cls(kept.generation, reference, learnt=LEARNT, chart=Chart.read(kept.chart))
        with reading_arrays(), np.load(io.BytesIO(kept.learnt), allow_pickle=False) as npz:
            learnt, rows = int(npz["learnt"]), [row.astype(np.float64) for row in npz["rows"]]
            stored: zip[tuple[Any, Any, Any]] = zip(npz["colour"], npz["bands"], npz["distances"], strict=True)
            pictures = [
                Part(kept.generation, Appearance(colour, bands), distances.astype(np.float64), True, 0)
                for colour, bands, distances in stored
            ]
        return cls(kept.generation, reference, pictures, rows, learnt, Chart.read(kept.chart))


class DriftWatch:
    """Watches the parts of all models.

    Parts wait for a thread that wakes up once a second at most. What it finds is kept in `drifts` in one step: a worker
    that was overtaken by another one adds its parts to what that one wrote.

    Args:
        wanted: good parts after a fit that limits are learnt from; 0: nothing is watched.
    """

    def __init__(self, store: ModelStore, drifts: Drifts, wanted: int) -> None:
        self.store = store
        self.drifts = drifts
        self.wanted = wanted and max(wanted, FEWEST)
        self._waiting: dict[ModelKey, deque[Part]] = {}
        self._fits: dict[ModelKey, tuple[Mapping[str, Any], Sequence[Appearance]]] = {}
        self._known: dict[ModelKey, Finding] = {}
        self._troubles: dict[ModelKey, Exception] = {}
        self._references: LRUCache[str, Reference] = LRUCache(64)
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Take in what waits, and stop."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)

    def fitted(self, key: ModelKey, metadata: Mapping[str, Any], pictures: Sequence[Appearance]) -> None:
        """A model was fitted or grew: how its new images look is what its parts will be compared with."""
        if self.wanted and pictures:
            with self._lock:
                self._fits[key] = metadata, pictures
            self._begin()

    def add(self, key: ModelKey, result: InferResult) -> list[Notice]:
        """One part was inspected; what is to be said of those before it."""
        if not self.wanted or not result.provenance.generation:
            return []
        part = Part(
            result.provenance.generation,
            result.appearance,
            distances_of(result.inspection.token_map),
            result.is_anomaly is not True,
            now_us(),
        )
        with self._lock:
            self._waiting.setdefault(key, deque(maxlen=MOST_WAITING)).append(part)
        self._begin()
        trouble = self._troubles.get(key)
        if isinstance(trouble, DriftNewer):
            return [Notice("drift_unknown", {"reason": trouble})]
        return about_drift(self._known.get(key))

    def finding(self, key: ModelKey) -> Finding:
        """What there is to say of `key`, all its parts counted.

        Raises:
            MemoryNotFound, RecordsUnavailable, DriftNewer.
        """
        generation = self._generation(key)
        self.take_in()
        trouble = self._troubles.get(key)
        if isinstance(trouble, DriftNewer):
            raise trouble
        watched, _ = self._load(key, generation)
        return replace(watched.finding(self.wanted), evidence=watched.evidence())

    def states(self) -> Sequence[tuple[ModelKey, KeptDrift]]:
        """The state and cause of every model that is there. Raises RecordsUnavailable."""
        known = self.drifts.states() if self.wanted else ()
        return [(key, kept) for key, kept in known if self.store.stamp(key) is not None]

    def take_in(self) -> None:
        """Add the parts that wait to the charts of their models."""
        with self._turn:
            with self._lock:
                fits, self._fits = self._fits, {}
                waiting, self._waiting = self._waiting, {}
            for key, (metadata, pictures) in fits.items():
                remember(self.store, key, metadata, pictures)
            for key, parts in waiting.items():
                self._take(key, list(parts))

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.wait(PAUSE_S)  # meanwhile more parts come
            self.take_in()

    def _take(self, key: ModelKey, parts: Sequence[Part]) -> None:
        try:
            generation = self._generation(key)
            own = [part for part in parts if part.generation == generation]
            for _ in range(_TRIES if own else 0):
                watched, kept = self._load(key, generation)
                former = watched.reference
                for part in own:
                    watched.add(part, self.wanted)
                if self._save(key, watched, kept, former):
                    return
        except (InspectionError, OSError, ValueError) as err:  # the last of numbers that cannot be reckoned with
            if str(self._troubles.get(key)) != str(err):
                logger.warning("the drift of %s is not watched now: %s", key, err)
            self._troubles[key] = err

    def _save(self, key: ModelKey, watched: Watched, kept: KeptDrift | None, former: Reference | None) -> bool:
        found = watched.finding(self.wanted)
        unsaved = watched.reference is not former or kept is None or not kept.reference
        new = watched.reference if unsaved else None
        data = new.to_bytes() if new else None
        digest = digest_of(data) if data is not None else kept.reference if kept else ""
        saved = self.drifts.save(
            key,
            KeptDrift(
                watched.generation,
                VERSION,
                kept.revision if kept else 0,
                digest,
                watched.learning(),
                watched.chart.to_bytes(),
                found.state,
                found.cause,
                found.since_us,
            ),
            data,
        )
        if saved:
            if new is not None:
                self._references[digest] = new
            self._known[key] = found
            self._troubles.pop(key, None)
        return saved

    def _load(self, key: ModelKey, generation: str) -> tuple[Watched, KeptDrift | None]:
        """What is known of `key`, anew if it is about another memory, and what is kept. Raises DriftNewer."""
        kept = self.drifts.load(key)
        if kept is not None and kept.version > VERSION:
            raise DriftNewer(version=kept.version, known=VERSION)
        if kept is not None and kept.generation == generation:
            try:
                return Watched.read(kept, self._reference(key, kept)), kept
            except _DAMAGED as err:
                logger.warning("the drift of %s is learnt anew, because what was kept is damaged: %s", key, err)
        of_fit = _of_fit(self.store, key, generation)
        anew = replace(kept, reference="") if kept else None
        return Watched(generation, of_fit), anew

    def _reference(self, key: ModelKey, kept: KeptDrift) -> Reference | None:
        if not kept.reference:
            return None
        known = self._references.get(kept.reference)
        if known is None:
            data = self.drifts.reference(key)
            if digest_of(data) != kept.reference:
                raise ValueError("the reference is another one")
            known = self._references[kept.reference] = Reference.read(data)
        return known

    def _generation(self, key: ModelKey) -> str:
        if self.store.stamp(key) is None:
            raise MemoryNotFound(key=key)
        return str(self.store.manifest(key).get("generation", ""))


def _of_fit(store: ModelStore, key: ModelKey, generation: str) -> Reference | None:
    """What the fit of `generation` left beside the memory, if it did. Raises DriftNewer."""
    path = store.folder(key) / FILE
    try:
        data = path.read_bytes()
        with reading_arrays(), np.load(io.BytesIO(data), allow_pickle=False) as npz:
            if str(npz["generation"]) != generation:
                return None
        return Reference.read(data)
    except FileNotFoundError:
        return None
    except _DAMAGED as err:
        logger.warning("%s cannot be used, so first parts are learnt from: %s", path, err)
        return None


def remember(store: ModelStore, key: ModelKey, metadata: Mapping[str, Any], pictures: Sequence[Appearance]) -> None:
    """Leave what the images of a fit or growth look like beside its memory. Without it the first parts are learnt from.

    Args:
        metadata: of the memory, as it was stored. If another one is in its place by now, nothing is left.
        pictures: of the images that are new.
    """
    generation = str(metadata["generation"])
    try:
        former = _of_fit(store, key, str(metadata["grown_from"])) if "grown_from" in metadata else None
        if former is not None:
            features = np.array([features_of(one, former.placing) for one in pictures])
            made = former.joined(features, np.full((len(pictures), N_DISTANCES), np.nan))
        elif "grown_from" not in metadata and len(pictures) >= FEWEST:
            made = Reference.of(pictures)
        else:
            return
        if store.stamp(key) is None:  # it was deleted meanwhile
            return
        data = made.to_bytes(generation)
        with store.writing(key, LOCK_WAIT_S):
            if store.manifest(key).get("generation") == generation:
                write_atomic(store.folder(key) / FILE, lambda file: file.write(data))
    except (InspectionError, OSError) as err:
        logger.warning("the pictures of the fit of %s are not kept, so first parts are learnt from: %s", key, err)


def watch_of(store: ModelStore, ledger: Ledger | None, settings: Settings) -> DriftWatch:
    """The watch that the settings ask for, of the record that verdicts are kept in."""
    return DriftWatch(store, SharedDrifts(ledger) if ledger else OwnDrifts(), settings.drift_parts)


def about_drift(found: Finding | None) -> list[Notice]:
    """A notice while parts drift."""
    if found is None or found.state != "drift" or found.cause is None:
        return []
    return [Notice("drift", {"cause": CHANGED[found.cause], "since": utc(found.since_us)})]


def place_words(x: float, y: float) -> Phrase:
    """The words for a place in shares of the ROI's sides."""
    row, column = (0 if share < 1 / 3 else 2 if share > 2 / 3 else 1 for share in (y, x))
    return Phrase(_PLACES[row][column])


def utc(time_us: int) -> str:
    """A time in µs since 1970 as 2026-01-31T12:00:00Z."""
    return str(np.datetime64(time_us, "us").astype("datetime64[s]")) + "Z"
