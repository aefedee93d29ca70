"""The record of every verdict: one object that writes it, keeps its images and looks after both."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from backend.base.config import PROJECT_ROOT, Settings
from backend.base.errors import BadImage, ImageNotKept, NotRecorded, RecordsRefused, RecordsUnavailable
from backend.base.messages import Notice, Phrase
from backend.records.database import Database, Reason, Unavailable
from backend.records.entries import EventDraft, InspectionDraft, ReviewDraft, StoredImage
from backend.records.images import ImageStore, KeepPolicy, OtherImage
from backend.records.pruning import Pruned, prune
from backend.records.queries import Whole, whole
from backend.records.record import Record, now_us
from backend.records.tallies import catch_up
from backend.records.upgrading import bring_up
from backend.records.writer import Writer

logger = logging.getLogger(__name__)

HOUR_S = 3600.0
_FAULT = Phrase("records_fault")
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Recorded:
    """What became of a verdict: its identifier, None where it could not be recorded, and what is to be said of it."""

    inspection_id: str | None
    notices: Sequence[Notice] = ()


class Ledger:
    """Records verdicts and reviews, each committed before it returns; safe to use from many threads.

    Args:
        url: of the database.
        required: a verdict that cannot be recorded is an error instead of a warning.
        durable: commits survive a loss of power.
        keep: which images are kept; `images` is their folder.
        days: how long inspections are kept; 0: for ever.

    Raises RecordsRefused: the database's URL or place cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        images: Path | None = None,
        keep: KeepPolicy | None = None,
        images_max_gb: float = 20,
        min_free_mb: float = 0,
        required: bool = False,
        durable: bool = False,
        days: float = 0,
    ) -> None:
        self.database = Database(url, durable=durable)
        self.required = required
        self.days = days
        self.policy = keep or KeepPolicy()
        self.writer = Writer(self.database)
        self.images = ImageStore(
            images or images_beside(self.database),
            self.database,
            max_gb=images_max_gb,
            min_free_mb=min_free_mb,
            told=self.tell,
        )
        self._ready_since = -1
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    @classmethod
    def of(cls, settings: Settings) -> Ledger | None:
        """The record that the settings ask for; None with RESULTS_DB=none. Raises RecordsRefused."""
        if settings.results_db is None:
            return None
        return cls(
            settings.results_db,
            images=settings.images_dir,
            keep=KeepPolicy.of(settings.keep_images),
            images_max_gb=settings.images_max_gb,
            min_free_mb=settings.min_free_mb,
            required=settings.results_required,
            durable=settings.results_sync == "full",
            days=settings.results_days,
        )

    def start(self) -> None:
        """Begin this process's chain and look after the record from now on.

        A database that does not answer yet is tried again with the first verdict. Raises RecordsRefused.
        """
        try:
            self.writer.open()
        except Unavailable as trouble:
            logger.error("the record cannot be opened yet: %s", trouble.reason)
        self._keeper = threading.Thread(target=self._look_after, name="records-keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Write what waits, and where the chain ends."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join(5)
        self.writer.close()
        self.database.close()

    def record(self, record: Record, image: bytes | None = None) -> Recorded:
        """Record a verdict, with its image if the policy wants it.

        Raises NotRecorded: only if the record is required.
        """
        kept, notices = self._keep(record, image)
        try:
            name = self.writer.submit(InspectionDraft.of(record, kept)).result()
        except NotRecorded as err:
            if self.required:
                raise
            return Recorded(None, [Notice("not_recorded", {"reason": err.values["reason"]})])
        return Recorded(name, notices)

    def review(self, review: ReviewDraft) -> str:
        """Add a review; its identifier. Raises InspectionNotFound, NotRecorded."""
        return self.writer.submit(review).result()

    def tell(self, kind: str, body: Mapping[str, Any]) -> None:
        """Record an event. Raises NotRecorded."""
        self.writer.submit(EventDraft(kind, body)).result()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads the tables. Raises RecordsUnavailable."""
        with self.asked(), self.database.reading() as connection:
            yield connection

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around whatever reads the tables. Raises RecordsUnavailable in place of what the database raises."""
        try:
            self.ready()
            yield
        except Unavailable as trouble:
            raise RecordsUnavailable(reason=trouble.reason, retry_after=5) from trouble
        except SQLAlchemyError as err:
            logger.exception("the record cannot be read")
            raise RecordsUnavailable(reason=_FAULT, retry_after=5) from err

    def ready(self) -> None:
        """Make sure that there are tables. Raises Unavailable, RecordsRefused."""
        moves = self.database.moves
        if self._ready_since != moves:
            try:
                bring_up(self.database)
            except OSError as err:
                raise Unavailable(Phrase("records_system", {"err": err}), passing=True) from err
            self._ready_since = moves

    def inspection(self, inspection_id: str) -> Whole:
        """All that is kept of one inspection. Raises InspectionNotFound, RecordsUnavailable."""
        with self.reading() as connection:
            return whole(connection, inspection_id)

    def image(self, found: Whole) -> tuple[bytes, str]:
        """The image of an inspection byte for byte, and the suffix of its format. Raises ImageNotKept."""
        try:
            read = self.images.read(found.image_sha256)
            if read is not None:  # kept with this inspection, or with another one of the same image
                return read
            code = self._why_not(found)
        except OtherImage as err:
            logger.error("an image cannot be shown: %s", err)
            code = "image_changed"
        raise ImageNotKept(id=found.item["inspection_id"], reason=Phrase(code))

    def _why_not(self, found: Whole) -> str:
        """Why an image is not in the folder."""
        if found.image_store is None:
            return "image_not_wanted"
        if not found.item["image"]["kept"]:
            return "image_evicted"
        with suppress(Unavailable):
            if found.image_store == self.images.name:
                return "image_missing"
        return "image_elsewhere"

    def prune(self, *, before_us: int, by: str, dry_run: bool = False) -> Pruned:
        """Delete what is older. Raises NotRecorded, Unavailable."""
        self.ready()
        catch_up(self.database)
        return prune(self.database, self.images, self.tell, before_us=before_us, by=by, dry_run=dry_run)

    def _keep(self, record: Record, image: bytes | None) -> tuple[StoredImage | None, list[Notice]]:
        if image is None or not self.policy.wants(record) or self.writer.refuses():
            return None, []
        try:
            self.ready()
            return self.images.put(record.image_sha256, image), []
        except (Unavailable, NotRecorded) as err:
            reason: Reason = err.values["reason"] if isinstance(err, NotRecorded) else err.reason
        except (BadImage, RecordsRefused) as err:
            reason = err
        except OSError as err:
            reason = Phrase("records_system", {"err": err})
        logger.warning("an image is not kept: %s", reason)
        return None, [Notice("image_not_kept", {"reason": reason})]

    def _look_after(self) -> None:
        """At the start and each hour: the head to the log, left-overs; each hour: what is too old."""
        for hour in count():
            try:
                if self.writer.head is not None:
                    logger.info("this process's chain is at %s", self.writer.head)
                    catch_up(self.database)
                    self.images.tidy()
                    if self.days and hour:  # by then a clock that was wrong at the start has been set
                        self.prune(before_us=now_us() - round(self.days * DAY_US), by="RESULTS_DAYS")
            except (Unavailable, NotRecorded, RecordsRefused, OSError, SQLAlchemyError) as err:
                logger.warning("the record could not be looked after: %s", err)
            if self._stop.wait(HOUR_S):
                return


def images_beside(database: Database) -> Path:
    """The folder of images of a database that no other is named for."""
    if database.path is None:
        return PROJECT_ROOT / "data" / "images"
    return database.path.with_name(f"{database.path.stem}.images")
