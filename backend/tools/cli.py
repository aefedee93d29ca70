"""python -m backend: serve, fit, calibrate, infer, teach, restore, evaluate, demo, doctor and others: see --help."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.base.config import PROJECT_ROOT, Settings, load_settings, settings_table
from backend.base.errors import InspectionError
from backend.tools.terminal import any_encoding, print_table, reason, say, sentence

app = typer.Typer(help="Visual inspection that has only seen good parts.", no_args_is_help=True, add_completion=False)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)


def _number(text: str) -> float:
    """The number that somebody typed. Raises typer.BadParameter, which shows what was typed and is none."""
    if "," in text:
        raise typer.BadParameter(f"{text!r} is no number: use a point for decimals")
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise typer.BadParameter(f"{text!r} is no number")
    return float(text)


def _option(least: float, most: float = math.inf, *, whole: bool = False, says: str) -> Any:
    """An option that takes a number from `least` to `most`, written in digits and with a point."""
    bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"

    def number(given: str) -> float | int:
        text = str(given).strip()
        if whole and not _WHOLE.fullmatch(text):
            raise typer.BadParameter(f"{text!r} is no whole number")
        value = int(text) if whole else _number(text)
        if not least <= value <= most:
            raise typer.BadParameter(f"{text!r} must be {bounds}")
        return value

    return typer.Option(parser=number, metavar="<int>" if whole else "<float>", help=f"{says} {bounds.capitalize()}.")


Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")]
Role = Annotated[str, typer.Option(help="role_id of the model.")]
Roi = Annotated[str, typer.Option(help="roi_id of the model.")]
Recipe = Annotated[str, typer.Option(help="Recipe of the model.")]
MmPerPx = Annotated[float | None, _option(1e-6, 1e6, says="Millimetres per pixel; the model's own without.")]
Recorded = Annotated[str | None, typer.Option(help="Recorded with each verdict; at most 128 characters.")]
ShapeJson = Annotated[str | None, typer.Option("--shape", help="JSON of the part's shape inside the ROI.")]


def main() -> None:
    """Run the command line. What goes wrong ends it with a sentence and exit code 1."""
    any_encoding()
    try:
        app()
    except (InspectionError, OSError) as err:
        say("error", reason(err))
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, _option(0, 65535, whole=True, says="Port to listen on (PORT).")] = None,
    workers: Annotated[
        str, typer.Option(help="Processes that share the models folder: a number, or auto: as many as pay here.")
    ] = "1",
) -> None:
    """Serve the HTTP API."""
    from backend.tools.serve import number_of_workers, run_server

    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    try:
        processes = number_of_workers(workers, settings)
    except ValueError as err:
        raise typer.BadParameter(str(err), param_hint="--workers") from err
    run_server(settings, workers=processes)


@app.command()
def fit(
    folder: Folder,
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: Annotated[
        float | None,
        _option(1e-6, 1e6, says="Millimetres per pixel; what a .json beside an image says, or 1, without."),
    ] = None,
    shape: ShapeJson = None,
) -> None:
    """Build the memory of a model from a folder of good parts."""
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.tools import offline

    offline.fit(ModelKey.of(role, roi, recipe), folder, mm_per_px=mm_per_px, shape=parse_shape(shape))


@app.command()
def calibrate(
    good: Annotated[
        Path | None, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")
    ] = None,
    bad: Annotated[
        Path | None, typer.Option("--ng", exists=True, file_okay=False, help="Folder of images of bad parts.")
    ] = None,
    ok_scores: Annotated[str, typer.Option(help="In place of a folder: scores of good parts, as '0.31 0.28'.")] = "",
    ng_scores: Annotated[str, typer.Option(help="With --ok-scores: scores of bad parts.")] = "",
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = None,
    shape: ShapeJson = None,
    score_percentile: Annotated[
        float | None, _option(1, 100, says="Percentile of scores and threshold (SCORE_PERCENTILE).")
    ] = None,
    area_mm2_thr: Annotated[float | None, _option(0, 1e12, says="Smallest region (AREA_MM2_THR).")] = None,
    max_false_reject: Annotated[
        float | None,
        _option(0, 0.5, says="The lowest threshold that promises to reject no more good parts."),
    ] = None,
    confidence: Annotated[float, _option(0.5, 0.9999, says="Of what is promised.")] = 0.95,
    threshold: Annotated[float | None, _option(0, says="This threshold, kept as chosen.")] = None,
    note: Annotated[str, typer.Option(help="Kept with the calibration.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The calibration as JSON on standard output.")] = False,
) -> None:
    """Choose a model's threshold from images of good parts and, if there are any, of bad ones; or from their scores.

    Good parts that the model has learnt may be among them: each is compared with the others alone.
    """
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.service.calibration import Terms
    from backend.tools import offline

    key, mask = ModelKey.of(role, roi, recipe), parse_shape(shape)
    from_scores = bool(ok_scores.strip())
    if from_scores == (good is not None) or (ng_scores.strip() and not from_scores) or (bad and from_scores):
        raise typer.BadParameter("give a folder of good parts (and --ng), or --ok-scores (and --ng-scores)")
    terms = Terms(max_false_reject=max_false_reject, confidence=confidence, threshold=threshold, note=note)
    chosen: Any = {"terms": terms, "score_percentile": score_percentile, "area_mm2_thr": area_mm2_thr}
    failed = 0
    if good is None:
        result = offline.calibrate_with_scores(key, _scores(ok_scores), _scores(ng_scores), mm_per_px, **chosen)
    else:
        result, failed = offline.calibrate(key, good, bad, mm_per_px, mask, **chosen)
    offline.warn(result.warnings)
    values = result.values
    if as_json:
        typer.echo(json.dumps({**values, "warnings": [sentence(notice) for notice in result.warnings]}))
    say(str(key), f"threshold {values['threshold']:.4f}, from {values['n_ok']} OK and {values['n_ng']} NG scores")
    promise = values["false_reject"]
    bound, sure = 100 * promise["upper_bound"], 100 * promise["confidence"]
    say("promise", f"at most {bound:.3g} % of good parts are rejected, with a confidence of {sure:g} %")
    if failed:
        raise typer.Exit(1)


def _scores(text: str) -> list[float]:
    """Scores with spaces between them. Raises typer.BadParameter, which shows what is none."""
    words = [word.rstrip(",;") for word in text.split()]
    if several := next((word for word in words if "," in word), None):
        raise typer.BadParameter(f"{several!r} is no number: use a point for decimals, and spaces between scores")
    scores = [_number(word) for word in words]
    if scores and min(scores) < 0:
        raise typer.BadParameter(f"{min(scores):g} is no score: scores are 0 or more")
    return scores


@app.command()
def infer(
    files: Annotated[list[Path], typer.Argument(exists=True, help="Images, or folders of images.")],
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = None,
    shape: ShapeJson = None,
    out: Annotated[Path, typer.Option(help="Folder for the overlay pictures.")] = Path("overlays"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    part_id: Recorded = None,
    batch_id: Recorded = None,
    station_id: Recorded = None,
    operator: Recorded = None,
) -> None:
    """Inspect images, record the verdicts (RESULTS_DB), and write an overlay picture of each.

    An image that cannot be inspected has a row with its error, and the exit code is 1.
    """
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.tools import offline

    said = {"part_id": part_id, "batch_id": batch_id, "station_id": station_id, "operator": operator}
    key, mask = ModelKey.of(role, roi, recipe), parse_shape(shape)
    if offline.infer(key, files, mm_per_px=mm_per_px, shape=mask, out=out, as_json=as_json, said=said):
        raise typer.Exit(1)


@app.command()
def msa(
    study: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="CSV of a study; the record's repeated part_ids without."),
    ] = None,
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    batch: Annotated[str | None, typer.Option(help="Only records of this batch_id.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for msa.json and msa.html.")] = Path("msa"),
    lang: Annotated[str, typer.Option(help="Language of the page: es or en.")] = "es",
) -> None:
    """Analyse a measurement system: how well scores repeat, and how well people and the service agree.

    It leaves msa.json and a page to print and sign.
    """
    from backend.base.keys import ModelKey
    from backend.tools import msa as tool

    if lang not in {"es", "en"}:
        raise typer.BadParameter("--lang is es or en")
    tool.analyse(study, ModelKey.of(role, roi, recipe), batch, out=out, language="es" if lang == "es" else "en")


@app.command()
def certify(
    good: Annotated[
        Path | None,
        typer.Argument(
            exists=True, file_okay=False, help="Folder of images of good parts; the stored OK samples without."
        ),
    ] = None,
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = None,
    shape: ShapeJson = None,
    parts: Annotated[int, _option(5, whole=True, says="Good parts at most that are tried.")] = 50,
    trials: Annotated[
        int, _option(3, whole=True, says="Defects of each kind, zone and contrast; 30 assure a size.")
    ] = 60,
    seed: Annotated[int, _option(0, whole=True, says="Of what is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for certificate.json and certificate.html.")] = Path("certificate"),
    lang: Annotated[str, typer.Option(help="Language of the page: es or en.")] = "es",
) -> None:
    """Certify a model: what it promises, how small a defect it finds, what disturbs it.

    It leaves certificate.json and a page to print. A certificate of the stored samples is kept with the model too. An
    image that cannot be used is named, and the exit code is 1.
    """
    from backend.assurance.certificate import CertificateOptions
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.tools import offline

    if lang not in {"es", "en"}:
        raise typer.BadParameter("--lang is es or en")
    if not offline.certify(
        ModelKey.of(role, roi, recipe),
        good,
        mm_per_px,
        parse_shape(shape),
        options=CertificateOptions(most_parts=parts, trials=trials, seed=seed),
        out=out,
        language="es" if lang == "es" else "en",
    ):
        raise typer.Exit(1)


Author = Annotated[str, typer.Option(help="Who does it; the name of this account without it.")]
Note = Annotated[str, typer.Option(help="Kept with what is replaced; at most 2000 characters.")]


@app.command()
def versions(
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    as_json: Annotated[bool, typer.Option("--json", help="As GET /versions answers.")] = False,
) -> None:
    """List what a model was before each fit, growth, lesson, calibration and restore, the newest first."""
    from backend.base.keys import ModelKey
    from backend.tools import changing

    changing.versions(ModelKey.of(role, roi, recipe), as_json=as_json)


@app.command()
def restore(
    version: Annotated[str, typer.Argument(help="A version, as `versions` names it, or a generation.")],
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    author: Author = "",
    note: Note = "",
    as_json: Annotated[bool, typer.Option("--json", help="As POST /versions/{generation}/restore answers.")] = False,
) -> None:
    """Bring memory, calibration and shape of a version back in one step, bit for bit. What it replaces is kept."""
    from backend.base.keys import ModelKey
    from backend.tools import changing

    change = changing.change_of("restore", author, note)
    changing.restore(ModelKey.of(role, roi, recipe), version, change, as_json=as_json)


@app.command()
def teach(
    inspections: Annotated[list[str] | None, typer.Argument(help="Inspections by id; their image is kept.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="A stored OK sample by name; may be repeated.")] = None,
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Teach although something speaks against it.")] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Choose the threshold anew, from all stored samples.")
    ] = False,
    max_false_reject: Annotated[
        float | None,
        _option(0, 0.5, says="With --recalibrate: promise to reject no more good parts."),
    ] = None,
    confidence: Annotated[float, _option(0.5, 0.9999, says="Of what is promised.")] = 0.95,
    threshold: Annotated[float | None, _option(0, says="With --recalibrate: this threshold.")] = None,
    author: Author = "",
    note: Note = "",
    as_json: Annotated[bool, typer.Option("--json", help="As POST /teach answers.")] = False,
) -> None:
    """Add parts that were rejected though they are good to a model, after it is shown what that changes.

    An inspection that was reviewed as bad and passed becomes a golden NG sample. Exit code 1 when something speaks
    against the lesson and it is not forced: nothing has changed then.
    """
    from backend.assurance.teaching import Lesson
    from backend.base.keys import ModelKey
    from backend.service.calibration import Terms
    from backend.tools import changing

    change = changing.change_of("teach", author, note)
    terms = Terms(
        max_false_reject=max_false_reject,
        confidence=confidence,
        threshold=threshold,
        note=change.note,
        author=change.author,
    )
    if not recalibrate and (max_false_reject, threshold) != (None, None):
        raise typer.BadParameter("--max-false-reject and --threshold go with --recalibrate")
    lesson = Lesson(
        inspection_ids=inspections or (),
        filenames=sample or (),
        force=force,
        recalibrate=terms if recalibrate else None,
    )
    key = ModelKey.of(role, roi, recipe)
    if not changing.teach(key, lesson, change, dry_run=dry_run, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def rebuild(
    role: Annotated[str | None, typer.Option(help="Only models of this role_id.")] = None,
    roi: Annotated[str | None, typer.Option(help="Only models of this roi_id.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only models of this recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also memories that are neither lost nor foreign.")] = False,
) -> None:
    """Rebuild memories from the stored samples: those that are lost, and those that another extractor made."""
    from backend.tools import offline

    if offline.rebuild(role, roi, recipe, force=force):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = PROJECT_ROOT / "demo",
    good: Annotated[int, _option(4, whole=True, says="Good parts to learn from.")] = 12,
) -> None:
    """Render brake discs, fit, calibrate and inspect them through the real HTTP service; leave pictures."""
    from backend.tools.demo import run_demo

    run_demo(out, good=good)


@app.command()
def evaluate(
    sets: Annotated[
        list[Path],
        typer.Argument(exists=True, file_okay=False, help="Folders: train/good and test/<class>, or ok and ng."),
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS, any number of times; MODEL_NAME without.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="reference, anomalydino, patchcore or recommended; what is set otherwise wins.")
    ] = None,
    shots: Annotated[str, typer.Option(help="Figures with this few good parts too, as in 1,2,4.")] = "",
    seeds: Annotated[int, _option(1, whole=True, says="Draws of those few parts.")] = 3,
    perturb: Annotated[
        bool, typer.Option("--perturb", help="Also test under changes of light, focus and position, in steps.")
    ] = False,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("evaluation.html"),
    as_json: Annotated[Path | None, typer.Option("--json", help="A file for the figures; - for stdout.")] = None,
) -> None:
    """Measure the service on labelled images with the field's own figures; leave a report.

    A set or model that cannot be measured is named, the others are reported, and the exit code is 1.
    """
    few = _whole_numbers(shots)
    models = [_settings_for(name, preset) for name in model or [""]]
    from backend.tools.evaluate import run_evaluation

    if run_evaluation(sets, models, shots=few, draws=seeds, perturb=perturb, report=report, as_json=as_json):
        raise typer.Exit(1)


def _settings_for(model: str, preset: str | None) -> Settings:
    """The settings with a preset, and `NAME` or `NAME=WEIGHTS` for the model."""
    name, _, weights = model.partition("=")
    given = {"preset": preset, "model_name": name, "weights": weights}
    return load_settings(**{field: value for field, value in given.items() if value})


def _whole_numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers, each 1 or more. Raises typer.BadParameter for anything else."""
    parts = text.split(",") if text.strip() else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} must be whole numbers with commas between them, as in 1,2,4")
    return tuple(int(part) for part in parts)


records = typer.Typer(help="Verify, export and prune the recorded inspections (RESULTS_DB).", no_args_is_help=True)
app.add_typer(records, name="records")


@records.command()
def verify(
    images: Annotated[bool, typer.Option(help="Also read the images that are kept.")] = True,
    head: Annotated[
        list[str] | None, typer.Option(help="A head of a chain from the log, 3f9a1c07-1042=<hash>; may be repeated.")
    ] = None,
) -> None:
    """Hold every record against its chain of hashes. What was changed, removed or inserted is named; exit code 1."""
    from backend.tools.records import verify as verify_all

    report = verify_all(head or (), images=images)
    typer.echo(
        f"{report.inspections} inspections, {report.reviews} reviews and {report.events} events in {report.chains} "
        f"chains, {report.images} images; {report.pruned} entries pruned"
    )
    for found in report.found:
        say("error", sentence(found))
    if report.found:
        raise typer.Exit(1)
    typer.echo("whole: every record is what was written")


@records.command()
def export(
    out: Annotated[Path | None, typer.Option(help="The CSV file; standard output without it.")] = None,
    role: Annotated[str | None, typer.Option(help="Only of this role_id.")] = None,
    roi: Annotated[str | None, typer.Option(help="Only of this roi_id.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only ok or ng.")] = None,
    since: Annotated[str, typer.Option(help="From this date or time on (ISO 8601, UTC).")] = "",
    until: Annotated[str, typer.Option(help="Before this date or time.")] = "",
) -> None:
    """Write the recorded inspections as CSV, oldest first."""
    from backend.records.queries import Filters, parse_time
    from backend.tools.records import export as export_all

    if decision not in {None, "ok", "ng"}:
        raise typer.BadParameter("--decision is ok or ng")
    first, last = parse_time(since, "--since"), parse_time(until, "--until")
    export_all(out, Filters(role_id=role, roi_id=roi, decision=decision, since_us=first, until_us=last))


@records.command()
def prune(
    days: Annotated[float | None, _option(0, 36_500, says="Delete what is older than so many days.")] = None,
    before: Annotated[str, typer.Option(help="Delete what is from before this date or time.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete old inspections with their images. What is left can still be verified."""
    from backend.records.queries import parse_time, time_text
    from backend.records.record import now_us
    from backend.tools.records import prune as prune_all

    moment = parse_time(before, "--before")
    if (moment is None) == (days is None):
        raise typer.BadParameter("give --days or --before")
    if moment is None:
        moment = now_us() - round((days or 0) * 86_400e6)
    done = prune_all(moment, dry_run=dry_run)
    typer.echo(
        f"{done.inspections} inspections and {done.others} other entries of {done.chains} chains, from before "
        f"{time_text(moment)}, {'would go' if dry_run else 'are gone'}"
    )


@app.command()
def bank(
    folder: Folder,
    coreset_rate: Annotated[float, _option(1e-4, 1, says="Rows for each patch of the images.")] = 0.01,
    mirror: Annotated[bool, typer.Option(help="Know the parts mirrored, too.")] = True,
    version: Annotated[str | None, typer.Option("--embedding-version", help="How patches become vectors.")] = None,
) -> None:
    """Build the memory bank and the threshold of the ResNet18 API from a folder of good parts."""
    from backend.extractors.resnet import EMBEDDING_VERSIONS, RECOMMENDED
    from backend.tools import offline

    if version is not None and version not in EMBEDDING_VERSIONS:
        raise typer.BadParameter(f"known versions are {', '.join(EMBEDDING_VERSIONS)}")
    offline.build_bank(folder, coreset_rate=coreset_rate, mirrored=mirror, version=version or RECOMMENDED)


@app.command("export")
def export_extractor(
    out: Annotated[Path, typer.Argument(help="The file to write, such as extractor.bdix.")],
    form: Annotated[str, typer.Option("--format", help="bdix, which this service runs without torch, or onnx.")] = "",
) -> None:
    """Write the extractor that the settings name as one file, checked against torch with a reference picture.

    An ONNX file serves images of one size: square ROIs at INPUT_SIZE.
    """
    from backend.tools.transport import write_extractor

    kind = form or ("onnx" if out.suffix == ".onnx" else "bdix")
    if kind not in {"bdix", "onnx"} or out.suffix != f".{kind}":
        raise typer.BadParameter("--format is bdix or onnx, and the file's name ends with it")
    write_extractor(load_settings(), out)


@app.command()
def pack(
    role: Annotated[str, typer.Argument(help="role_id of the model.")],
    roi: Annotated[str, typer.Argument(help="roi_id of the model.")],
    recipe: Recipe = "default",
    out: Annotated[Path | None, typer.Option(help="The file; <role>_<roi>.bdim in this folder without.")] = None,
    with_extractor: Annotated[bool, typer.Option("--with-extractor", help="Put the exported extractor in.")] = False,
) -> None:
    """Write one model as one file: memory, calibration and certificate."""
    from backend.base.keys import ModelKey
    from backend.tools.transport import pack_model

    pack_model(load_settings(), ModelKey.of(role, roi, recipe), out, with_extractor=with_extractor)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .bdim file.")],
    role: Annotated[str | None, typer.Option(help="Another role_id than the packed one.")] = None,
    roi: Annotated[str | None, typer.Option(help="Another roi_id.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Another recipe.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Even where there is such a model.")] = False,
    extractor: Annotated[Path | None, typer.Option(help="Write the extractor in the file here, for WEIGHTS.")] = None,
) -> None:
    """Check a packed model whole, and put it in place in one step."""
    from backend.tools.transport import unpack_model

    unpack_model(load_settings(), file, (role, roi, recipe), overwrite=replace, extractor=extractor)


@app.command()
def bench(
    stages: Annotated[bool, typer.Option("--stages", help="Only the stages, without HTTP.")] = False,
    reference: Annotated[bool, typer.Option(help="Also time the service with torch in fp32.")] = False,
    fits: Annotated[str, typer.Option(help="Images of each fit.")] = "10,34,200",
    sides: Annotated[str, typer.Option(help="Sides in px of the inspected ROIs.")] = "448,1600",
    jpegs: Annotated[str, typer.Option(help="Sides of those that are sent as JPEG besides; or none.")] = "1600,2000",
    clients: Annotated[str, typer.Option(help="Clients at the same time.")] = "1,4,16",
    requests: Annotated[int, _option(2, whole=True, says="Requests of each measurement.")] = 60,
    jpeg: Annotated[bool, typer.Option(help="Send everything as JPEG.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
) -> None:
    """Time the service on this machine: stage by stage, and end to end over HTTP."""
    counts = [_whole_numbers(text) for text in (fits, sides, clients)]
    besides = [] if jpeg or jpegs == "none" else _whole_numbers(jpegs)
    from backend.tools.bench import Plan, run_bench

    plan = Plan(
        fits=counts[0],
        sides=counts[1],
        jpegs=besides,
        clients=counts[2],
        requests=requests,
        form="jpg" if jpeg else "png",
        http=not stages,
        reference=reference,
    )
    run_bench(plan, out=out)


@app.command()
def doctor() -> None:
    """Look at this machine and say what to do; exit code 1 when something must be mended."""
    from rich.text import Text

    from backend.tools.doctor import examine

    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    findings = examine(load_settings())
    rows = [(Text(found.level, colours[found.level]), found.what, found.says) for found in findings]
    print_table(["", "what", "how it is, and what to do"], rows)
    if any(found.level == "bad" for found in findings):
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Print every setting with its default, as a Markdown table."""
    typer.echo(settings_table())
