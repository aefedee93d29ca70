"""The use cases without HTTP, on files and folders: fit, calibrate, inspect, certify, rebuild, build a bank.

Inspections and calibrations name the files that cannot be used, go on with the others, and say how many failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from itertools import count
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from backend.api import catalogue
from backend.assurance.certificate import CertificateOptions, certify_stored, notices_of
from backend.assurance.certificate import certify as certify_on
from backend.assurance.golden import GoldenSet
from backend.assurance.page import page
from backend.assurance.parts import Parts
from backend.assurance.watch import remember
from backend.assurance.words import Language
from backend.base.config import Settings, load_settings
from backend.base.decoding import ImageOptions
from backend.base.errors import BadImage, FitInProgress, InvalidShape, SidecarNotJson, TokenGridMismatch
from backend.base.files import disk_errors, storage_fault, write_atomic, write_json
from backend.base.images import encode_png, list_images, resize
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.evaluation.pictures import overlay
from backend.resnet_api.predictor import Predictor
from backend.roi_mask import Shape
from backend.samples.collector import Collector, about_each, basis_of
from backend.samples.scoring import Sample, SampleScorer, Scored
from backend.samples.store import SampleStore
from backend.service.calibration import Terms
from backend.service.fitting import Fitter
from backend.service.images import ImageFile, decoded
from backend.service.inspection import Inspector, OpenGate
from backend.service.jobs import Job
from backend.service.results import CalibrationResult, InferResult
from backend.service.sidecars import Sidecar, meta_beside
from backend.tools.records import Recorder, recorder
from backend.tools.terminal import Bars, going_on, plain, print_table, say, sentence

OF_ONE_FILE = (
    BadImage,
    TokenGridMismatch,
    InvalidShape,
    SidecarNotJson,
    OSError,
)  # what one file's fault is, and not the model's


def images_in(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths` and the images in the folders among them, sorted by name within each folder.

    A folder without an image is named. Raises typer.BadParameter when there is nothing at all.
    """
    found: list[Path] = []
    for path in paths:
        inside = list_images(path) if path.is_dir() else [path]
        if not inside and len(paths) > 1:
            say("warning", f"there is no image in {path}")
        found += inside
    if not found:
        raise typer.BadParameter(f"there is no image in {', '.join(map(str, paths))}")
    return found


class Session:
    """An Inspector of this process, with progress bars on standard error; a context manager.

    Args:
        inspector: used instead of one for `settings`.
        quiet: no bars, for rows that go to the same terminal.
    """

    def __init__(self, settings: Settings, inspector: Inspector | None = None, *, quiet: bool = False) -> None:
        self.settings = settings
        self.inspector = inspector or Inspector(settings)
        if isinstance(self.inspector.gate, OpenGate):
            stored = SampleStore(settings.datasets_dir, max_gb=settings.datasets_max_gb)
            self.inspector.gate = GoldenSet(self.inspector, stored)
        self.bars = Bars(quiet=quiet)
        self._open = ExitStack()

    def __enter__(self) -> Session:
        self._open.callback(self.inspector.close)
        self.inspector.start()
        self._open.enter_context(self.bars)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def mm_per_px(self, key: ModelKey) -> float:
        """The scale that the model of `key` was fitted with. Raises MemoryNotFound, DamagedFile."""
        return self.inspector.cache.model(key).stored.number("mm_per_px", 1.0)

    def job(self) -> Job:
        """A job whose stages are bars."""
        return _ShownJob(self.bars)


class _ShownJob(Job):
    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars

    def report(self, stage: str, done: int, total: int) -> None:
        self._bars.show(stage, done, total)


def warn(notices: Sequence[Notice]) -> None:
    """Print what an answer carries along."""
    for notice in notices:
        say("warning", sentence(notice))


def _with_sidecars(paths: Sequence[Path], shape: Shape | None) -> tuple[list[ImageFile], list[Sidecar]]:
    """The images, each with its part's shape (`shape` where it is given), and what the .json beside each says.

    Raises:
        SidecarNotJson.
    """
    said = [Sidecar.beside(path) for path in paths]
    files = zip(paths, said, strict=True)
    return [ImageFile.named(path.name, path.read_bytes, shape or known.shape) for path, known in files], said


def fit(key: ModelKey, folder: Path, *, mm_per_px: float | None, shape: Shape | None) -> None:
    """Build the memory of `key` from the images in `folder`.

    What is not given is what a .json beside an image says; mm_per_px is 1 without any. Raises what Fitter.fit does, and
    SidecarNotJson.
    """
    files, said = _with_sidecars(images_in([folder]), shape)
    mm_per_px = mm_per_px or next((known.mm_per_px for known in said if known.mm_per_px), 1.0)
    with Session(load_settings()) as session:
        result = Fitter(session.inspector).fit(key, files, mm_per_px=mm_per_px, job=session.job())
        remember(session.inspector.store, key, result.metadata, result.appearances)
    warn([*(notice for known in said for notice in known.notices), *result.warnings])
    version = result.metadata["model_version"]
    say(str(key), f"{len(files)} images, {result.coreset_size} rows, model version {version}")


def infer(
    key: ModelKey,
    paths: Sequence[Path],
    *,
    mm_per_px: float | None,
    shape: Shape | None,
    out: Path,
    as_json: bool,
    said: Mapping[str, str | None],
) -> int:
    """Inspect images, record the verdicts, write an overlay of each into `out`, print a row for each; how many failed.

    `said`: what is recorded with each verdict: part_id, batch_id, station_id, operator.

    As JSON a row is printed as soon as it is known. Raises what Inspector.infer does, unless it is one file's fault.
    """
    files = images_in(paths)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        settings = load_settings()
        quiet = as_json and sys.stdout.isatty()
        with recorder(settings, said) as record, Session(settings, quiet=quiet) as session:
            session.mm_per_px(key)  # no file is read for a model that is not there
            for path in session.bars.track("inspect", files):
                rows.append(_inspected(session, record, key, path, mm_per_px, shape, out))
                if as_json:
                    typer.echo(json.dumps(rows[-1]))
    finally:  # what was inspected before somebody stops it is shown
        if rows and not as_json:
            _print_rows(rows)
        _warn_of(rows)
    return sum("error" in row for row in rows)


def _inspected(
    session: Session,
    record: Recorder,
    key: ModelKey,
    path: Path,
    mm_per_px: float | None,
    shape: Shape | None,
    out: Path,
) -> dict[str, Any]:
    """One inspection as a flat JSON object, or the file and its error."""
    try:
        data, known = path.read_bytes(), Sidecar.beside(path)
        file = ImageFile(plain(path.as_posix()), lambda: data, shape or known.shape)
        scale = mm_per_px or known.mm_per_px or session.mm_per_px(key)
        result = session.inspector.infer(key, file, mm_per_px=scale, heatmap="none")
        result, name = record.add(key, file, result)
    except OF_ONE_FILE as err:
        said = f"{path.as_posix()}: {err.strerror}" if isinstance(err, OSError) else sentence(err)
        say("error", said)
        return {"file": path.as_posix(), "error": said}
    picture = _write_overlay(out, path, data, result, ImageOptions.of(session.settings))
    return {
        "file": path.as_posix(),
        "score": result.inspection.score,
        "threshold": result.threshold,
        "decision": _decision(result),
        "regions": len(result.inspection.regions),
        "area_mm2": sum(region.area_mm2 for region in result.inspection.regions),
        "overlay": picture.as_posix(),
        "warnings": [sentence(notice) for notice in (*known.notices, *result.warnings)],
        **({"inspection_id": name} if name else {}),
    }


def _write_overlay(out: Path, path: Path, data: bytes, result: InferResult, options: ImageOptions) -> Path:
    """Write the overlay picture of the image at `path` into `out`, beside all that is there; its path.

    Raises:
        DiskFull, ReadOnlyStore.
    """
    found = result.inspection
    with decoded(ImageFile(path.name, lambda: data), options) as (_, seen):
        image = resize(seen.pixels, *found.anomaly_map.shape)
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
    return _write_new(out, path, encode_png(picture))


def _write_new(out: Path, path: Path, png: bytes) -> Path:
    """Write `<folder>_<stem>_overlay.png`, or where that is taken `<folder>_<stem>-2_overlay.png` and so on.

    A file's name has 255 bytes at most on common file systems, so a longer one is cut short. Bytes that are no text are
    left out.
    """
    stem = "_".join(part for part in (path.parent.name, path.stem) if part)
    stem = os.fsdecode(os.fsencode(stem)[:220].decode("utf-8", "ignore").encode())  # as this system's names are written
    for number in count(1):
        target = out / f"{stem}{'' if number == 1 else f'-{number}'}_overlay.png"
        try:
            file = target.open("xb")
        except FileExistsError:
            continue
        except OSError as err:
            raise storage_fault(err, target.name) from err
        with disk_errors(target), file:
            file.write(png)
        return target
    raise AssertionError("there is always another number")


def _decision(result: InferResult) -> str | None:
    return None if result.is_anomaly is None else "ng" if result.is_anomaly else "ok"


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    cells: list[list[str | Text]] = []
    for row in rows:
        if "error" in row:
            cells.append([row["file"], "", "", "error", "", "", ""])
            continue
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.4f}"
        verdict = row["decision"] or "?"
        numbers = [f"{row['score']:.4f}", threshold, verdict, str(row["regions"]), f"{row['area_mm2']:.1f}"]
        cells.append([row["file"], *numbers, row["overlay"]])
    print_table(["file", "score", "threshold", "verdict", "regions", "mm²", "overlay"], cells)


def _warn_of(rows: Sequence[dict[str, Any]]) -> None:
    """Each warning once, with the files that it is about unless it is about all."""
    inspected = [row for row in rows if "warnings" in row]
    for text in dict.fromkeys(text for row in inspected for text in row["warnings"]):
        files = [row["file"] for row in inspected if text in row["warnings"]]
        say("warning", text if len(files) == len(inspected) else f"{', '.join(files)}: {text}")


def calibrate(
    key: ModelKey,
    good: Path,
    bad: Path | None,
    mm_per_px: float | None,
    shape: Shape | None,
    *,
    terms: Terms,
    score_percentile: float | None,
    area_mm2_thr: float | None,
) -> tuple[CalibrationResult, int]:
    """Calibrate `key` with the scores of the images in two folders; the result, and how many files failed.

    An image that the memory was fitted on is scored without its own rows, or the answer would flatter itself.

    Raises:
        typer.BadParameter: no image of a good part could be scored.
        MemoryNotFound, ExtractorMismatch, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
    """
    folders = {"ok": images_in([good]), "ng": images_in([bad]) if bad else []}
    settings = load_settings()
    percentile = score_percentile or settings.score_percentile
    area = settings.area_mm2_thr if area_mm2_thr is None else area_mm2_thr
    scores: dict[str, list[float]] = {"ok": [], "ng": []}
    inspected: list[Scored] = []
    with Session(settings) as session:
        scorer = SampleScorer(
            session.inspector,
            _Folders(shape, mm_per_px),
            key,
            default_mm_per_px=mm_per_px,
            leave_out=True,
            anew=(percentile, area),
        )
        chosen = [
            Sample(label, path.as_posix()) for label, paths in folders.items() for path in paths if _readable(path)
        ]
        failed = sum(map(len, folders.values())) - len(chosen)
        for scored in scorer.run(chosen, session.job()):
            if scored.error:
                failed += 1
                say("error", sentence(scored.error))
            elif scored.inspection:
                scores[scored.sample.label].append(scored.inspection.score)
                inspected.append(scored)
        if not scores["ok"]:
            raise typer.BadParameter(f"no image in {good} could be scored")
        if session.inspector.cache.model(key).stored.generation != scorer.model.stored.generation:
            raise FitInProgress(key=key, retry_after=1)
        result = session.inspector.calibrate(
            key,
            ok_scores=scores["ok"],
            ng_scores=scores["ng"],
            mm_per_px=scorer.mm_per_px,
            area_mm2_thr=area,
            score_percentile=percentile,
            terms=replace(terms, basis=basis_of(inspected), scored_with=scorer.criteria),
        )
    return replace(result, warnings=[*result.warnings, *about_each(inspected)]), failed


def calibrate_with_scores(
    key: ModelKey,
    ok_scores: Sequence[float],
    ng_scores: Sequence[float],
    mm_per_px: float | None,
    *,
    terms: Terms,
    score_percentile: float | None,
    area_mm2_thr: float | None,
) -> CalibrationResult:
    """Calibrate `key` with scores that are known already. Raises what Inspector.calibrate does."""
    with Session(load_settings()) as session:
        return session.inspector.calibrate(
            key,
            ok_scores=ok_scores,
            ng_scores=ng_scores,
            mm_per_px=mm_per_px or session.mm_per_px(key),
            area_mm2_thr=area_mm2_thr,
            score_percentile=score_percentile,
            terms=terms,
        )


def certify(
    key: ModelKey,
    good: Path | None,
    mm_per_px: float | None,
    shape: Shape | None,
    *,
    options: CertificateOptions,
    out: Path,
    language: Language,
) -> bool:
    """Certify `key` on the images in a folder, or on its stored samples, and write certificate.json and .html.

    A certificate of the stored samples is kept with the model too. Returns whether all images could be used. Raises
    what certify and certify_stored do.
    """
    files = [] if good is None else images_in([good])
    given = len(files)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    collector = Collector(load_settings())
    with Session(collector.settings, collector.inspector) as session:
        if good is None:
            made = certify_stored(collector, key, options, session.job())
        else:
            files = [path for path in files if _readable(path)]
            images, said = _with_sidecars(files, shape)
            scale = mm_per_px or next((known.mm_per_px for known in said if known.mm_per_px), session.mm_per_px(key))
            parts = Parts.of(session.inspector, key, images, mm_per_px=scale, most=options.most_parts)
            parts = replace(parts, notices=[*(one for known in said for one in known.notices), *parts.notices])
            made = certify_on(session.inspector, key, parts, options=options, job=session.job())
    warn(notices_of(made))
    write_json(out / "certificate.json", made)
    html = page(made, language, catalogue.sentence)
    write_atomic(out / "certificate.html", lambda file: file.write(html.encode()))
    say(str(key), f"{out / 'certificate.html'}, {out / 'certificate.json'}")
    return given == len(files) and all(notice.code != "samples_left_out" for notice in notices_of(made))


class _Folders:
    """Images in folders, where a SampleScorer looks for stored samples: their names are paths."""

    def __init__(self, shape: Shape | None, mm_per_px: float | None) -> None:
        given = {"shape": shape and shape.as_dict(), "mm_per_px": mm_per_px}
        self._given = {name: value for name, value in given.items() if value}

    def meta(self, _key: ModelKey, _label: str, name: str) -> dict[str, Any]:
        """What was said of all images, and of this one in the .json beside it. Raises SidecarNotJson."""
        return {**meta_beside(Path(name)), **self._given}

    def read(self, _key: ModelKey, _label: str, name: str) -> bytes:
        """The file's bytes."""
        return Path(name).read_bytes()


def _readable(path: Path) -> bool:
    """Whether the file can be opened; if not, it is named."""
    try:
        path.open("rb").close()
    except OSError as err:
        say("error", f"{path.as_posix()}: {err.strerror}")
        return False
    return True


def rebuild(role: str | None, roi: str | None, recipe: str | None, *, force: bool) -> int:
    """Rebuild memories from the stored samples, those of the ids given if any are; how many failed."""
    collector = Collector(load_settings())
    rebuilder, wanted = collector.rebuilder, (role, roi, recipe)
    failed: list[str] = []
    with Session(collector.settings, collector.inspector) as session:
        found = collector.samples.all_keys() if force else rebuilder.lost() + rebuilder.foreign()
        asked = [key for key in found if all(a in {None, own} for a, own in zip(wanted, astuple(key), strict=True))]
        if not asked:
            say("rebuild", "no memory is lost or foreign" if not force else "there are no samples of such a model")
        for key in asked:
            with going_on(str(key), failed):
                done = rebuilder.rebuild(key, session.job(), replace=True)
                warn(done.notices if done else ())
                say(str(key), str(done))
    return len(failed)


def build_bank(folder: Path, *, coreset_rate: float, mirrored: bool, version: str) -> None:
    """Build the ResNet18 API's memory bank from the images in `folder`. Raises what Predictor.build does."""
    files = [ImageFile.named(path.name, path.read_bytes) for path in images_in([folder])]
    predictor = Predictor(load_settings())
    try:
        with Bars() as bars:
            built = predictor.build(
                files, coreset_rate=coreset_rate, mirrored=mirrored, version=version, job=_ShownJob(bars)
            )
    finally:
        predictor.close()
    warn(built.warnings)
    about = built.bank.about
    say(str(predictor.store.path), f"{len(files)} images, {len(built.bank.memory)} rows")
    say("threshold", f"{about['threshold']:.4f}, {about['embedding_version']}")
