"""python -m backend: serve, fit, infer, rebuild, evaluate, bank, demo, settings."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from backend.config import PROJECT_ROOT, Settings, load_settings, settings_table
from backend.errors import InspectionError

if TYPE_CHECKING:
    from backend.inspector import Inspector
    from backend.lane import Job

app = typer.Typer(help="Visual inspection that has only seen good parts.", no_args_is_help=True, add_completion=False)
console = Console(stderr=True)

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
Role = Annotated[str, typer.Option(help="role_id of the model.")]
Roi = Annotated[str, typer.Option(help="roi_id of the model.")]
Recipe = Annotated[str, typer.Option(help="Recipe of the model.")]
MmPerPx = Annotated[float, typer.Option(min=1e-6, help="Millimetres per pixel.")]


def main() -> None:
    """Run the command line; an InspectionError ends it with its sentence and exit code 1."""
    try:
        app()
    except InspectionError as err:
        console.print(f"[red]error[/]: {err}", highlight=False)
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the models folder.")] = 1,
) -> None:
    """Serve the HTTP API."""
    import uvicorn

    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    uvicorn.run(
        "backend.app:app",
        host=settings.host,
        port=settings.port,
        workers=workers,
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=30,
    )


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")],
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = 1.0,
) -> None:
    """Build the memory of a model from a folder of good parts."""
    from backend.storage import ModelKey

    key, paths = ModelKey.of(role, roi, recipe), images_in([folder])
    with _Session(load_settings()) as session:
        result = session.inspector.fit(key, _files(paths), mm_per_px=mm_per_px, job=session.job())
        session.warn(result.warnings)
    console.print(f"{key}: {len(paths)} images, {result.coreset_size} rows, model version ", end="")
    console.print(result.metadata["model_version"])


@app.command()
def infer(
    files: Annotated[list[Path], typer.Argument(exists=True, help="Images, or folders of images.")],
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = 1.0,
    shape: Annotated[str | None, typer.Option(help="JSON of the part's shape inside the ROI.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the overlay pictures.")] = Path("overlays"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
) -> None:
    """Inspect images and write an overlay picture of each."""
    from backend.roi_mask import parse_shape
    from backend.storage import ModelKey

    key, mask, paths = ModelKey.of(role, roi, recipe), parse_shape(shape), images_in(files)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with _Session(load_settings()) as session:
        for path, file in zip(session.track(paths, "inspect"), _files(paths), strict=True):
            result = session.inspector.infer(key, file, mm_per_px=mm_per_px, shape=mask, heatmap="none")
            picture = _write_overlay(out, path, result)
            rows.append(_row(path, result, picture))
        session.warn(result.warnings)
    _report(rows, as_json)


@app.command()
def rebuild(
    role: Annotated[str | None, typer.Option(help="Only models of this role_id.")] = None,
    roi: Annotated[str | None, typer.Option(help="Only models of this roi_id.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only models of this recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also memories that are neither lost nor foreign.")] = False,
) -> None:
    """Rebuild memories from the stored samples: those that are lost, and those that another extractor made."""
    from backend.collector import Collector

    collector = Collector(load_settings())
    rebuilder, wanted = collector.rebuilder, (role, roi, recipe)
    with _Session(collector.settings, collector.inspector) as session:
        keys = collector.samples.all_keys() if force else rebuilder.lost() + rebuilder.foreign()
        for key in keys:
            if any(asked not in {None, own} for asked, own in zip(wanted, astuple(key), strict=True)):
                continue
            done = rebuilder.rebuild(key, session.job(), replace=True)
            session.warn(done.notices if done else ())
            console.print(f"{key}: {done}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = PROJECT_ROOT / "demo",
    good: Annotated[int, typer.Option(min=4, help="Good parts to learn from.")] = 12,
) -> None:
    """Render brake discs, fit, calibrate and inspect them through the real HTTP service; leave pictures."""
    from backend.demo import run_demo

    run_demo(out, good=good, console=console)


class _ManyNumbers(TyperCommand):
    """Lets `--shots 1 2 4` stand for `--shots 1 --shots 2 --shots 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        for arg in args:
            follows = len(spread) > 1 and spread[-2] == "--shots" and arg.isdecimal()
            spread += ["--shots", arg] if follows else [arg]
        return super().parse_args(ctx, spread)


@app.command(cls=_ManyNumbers)
def evaluate(
    sets: Annotated[
        list[Path],
        typer.Argument(exists=True, file_okay=False, help="Folders: train/good and test/<class>, or ok and ng."),
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS, any number of times; MODEL_NAME without.")
    ] = None,
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Figures with this few good parts too, as in --shots 1 2 4.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of those few parts.")] = 3,
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("evaluation.html"),
    as_json: Annotated[Path | None, typer.Option("--json", help="A file for the figures; - for stdout.")] = None,
) -> None:
    """Measure the service on labelled images with the field's own figures; leave a report."""
    from backend.evaluate import Evaluator
    from backend.report import SUMMARY, html_report, summary_row
    from backend.sets import read_set

    given, results = [read_set(folder) for folder in sets], []
    for name in model or [""]:
        with _Bars() as bars, Evaluator(_settings_for(name), remember=bool(shots), progress=bars.show) as evaluator:
            results += [evaluator.run(one, shots=shots or (), draws=seeds) for one in given]
    table = Table(*SUMMARY)
    for result in results:
        table.add_row(*summary_row(result))
    Console(stderr=as_json == Path("-")).print(table)
    command = f"python -m backend {shlex.join(sys.argv[1:])}"
    report.write_text(html_report(results, command=command), encoding="utf-8")
    console.print(f"report: {report}", highlight=False)
    if as_json:
        text = json.dumps([result.as_dict() for result in results], ensure_ascii=False, indent=1, default=str)
        sys.stdout.write(text) if as_json == Path("-") else as_json.write_text(text, encoding="utf-8")


def _settings_for(model: str) -> Settings:
    """The settings with `NAME` or `NAME=WEIGHTS` for the model."""
    name, _, weights = model.partition("=")
    given = {"model_name": name, "weights": weights}
    return load_settings(**{field: value for field, value in given.items() if value})


@app.command()
def bank(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")],
    coreset_rate: Annotated[float, typer.Option(min=1e-4, max=1, help="Share of the patches kept.")] = 0.01,
    version: Annotated[str | None, typer.Option("--embedding-version", help="How patches become vectors.")] = None,
) -> None:
    """Build the memory bank and the threshold of the ResNet18 API from a folder of good parts."""
    from backend.features_grey import RECIPES, RECOMMENDED
    from backend.predictor import Predictor

    if version is not None and version not in RECIPES:
        raise typer.BadParameter(f"known versions are {', '.join(RECIPES)}")
    paths = images_in([folder])
    predictor = Predictor(load_settings())
    with _progress() as progress:
        built = predictor.build(
            _files(paths), coreset_rate=coreset_rate, version=version or RECOMMENDED, job=_shown_job(progress)
        )
    predictor.close()
    about = built.bank.about
    console.print(f"{predictor.store.path}: {len(paths)} images, {len(built.bank.memory)} rows")
    console.print(f"threshold {about['threshold']:.4f}, {about['embedding_version']}")


@app.command()
def bench(
    stages: Annotated[bool, typer.Option("--stages", help="Only the stages, without HTTP.")] = False,
    reference: Annotated[bool, typer.Option(help="Also time the service with torch in fp32.")] = False,
    fits: Annotated[str, typer.Option(help="Images of each fit.")] = "10,34,200",
    sides: Annotated[str, typer.Option(help="Sides in px of the inspected ROIs.")] = "448,1600",
    clients: Annotated[str, typer.Option(help="Clients at the same time.")] = "1,4,16",
    requests: Annotated[int, typer.Option(min=2, help="Requests of each measurement.")] = 60,
    jpeg: Annotated[bool, typer.Option(help="Send JPEG instead of PNG.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
) -> None:
    """Time the service on this machine: stage by stage, and end to end over HTTP."""
    from backend.bench import Plan, run_bench

    shown = {"fits": fits, "sides": sides, "clients": clients}
    numbers: dict[str, Any] = {
        name: tuple(int(n) for n in text.split(",") if n.strip()) for name, text in shown.items()
    }
    form = "jpg" if jpeg else "png"
    plan = Plan(**numbers, requests=requests, form=form, http=not stages, reference=reference)
    run_bench(plan, out=out, console=Console())


@app.command()
def settings() -> None:
    """Print every setting with its default, as a Markdown table."""
    typer.echo(settings_table())


def images_in(paths: list[Path]) -> list[Path]:
    """The image files among `paths` and in the folders among them, sorted by name within each folder."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS) if path.is_dir() else [path]
        found.extend(inside)
    if not found:
        raise typer.BadParameter("there is no image in what was given")
    return found


class _Bars:
    """Progress bars on standard error, one for each thing that is under way."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


class _Session:
    """An inspector without HTTP, and progress bars on standard error."""

    def __init__(self, settings: Settings, inspector: Inspector | None = None) -> None:
        from backend.inspector import Inspector

        self.inspector: Inspector = inspector or Inspector(settings)
        self.progress = _progress()

    def __enter__(self) -> _Session:
        self.inspector.start()
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.inspector.close()

    def track(self, items: list[Path], label: str) -> Any:
        return self.progress.track(items, description=label)

    def warn(self, notices: Any) -> None:
        for notice in notices:
            console.print(f"[yellow]warning[/]: {notice.text('en')}", highlight=False)

    def job(self) -> Job:
        return _shown_job(self.progress)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _shown_job(progress: Progress) -> Job:
    """A job whose stages are bars of `progress`."""
    from backend.lane import Job

    tasks: dict[str, Any] = {}

    class Shown(Job):
        def report(self, stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

    return Shown()


def _files(paths: list[Path]) -> list[Any]:
    from backend.fitting import ImageFile

    return [ImageFile.named(path.name, path.read_bytes) for path in paths]


def _write_overlay(out: Path, path: Path, result: Any) -> Path:
    from backend.pictures import overlay
    from backend.utils import decode_image, encode_png, resize

    found = result.inspection
    image = resize(decode_image(path.read_bytes(), name=path.name), *found.heat.shape)
    low, high = result.heatmap_range
    scale = found.frame.scale
    outlines = [
        {"contour": [[x * scale, y * scale] for x, y in region.contour], "area_mm2": region.area_mm2}
        for region in found.regions
    ]
    picture = overlay(
        image,
        found.heat,
        low=low,
        high=max(high, result.threshold or 0.0),
        regions=outlines,
        score=found.score,
        threshold=result.threshold,
        decision=_decision(result),
        mask=found.mask,
        title=path.name,
    )
    target = out / f"{path.parent.name}_{path.stem}_overlay.png"
    target.write_bytes(encode_png(picture))
    return target


def _decision(result: Any) -> str | None:
    return None if result.is_anomaly is None else "ng" if result.is_anomaly else "ok"


def _row(path: Path, result: Any, picture: Path) -> dict[str, Any]:
    return {
        "file": path.as_posix(),
        "score": result.inspection.score,
        "threshold": result.threshold,
        "decision": _decision(result),
        "regions": len(result.inspection.regions),
        "area_mm2": sum(region.area_mm2 for region in result.inspection.regions),
        "overlay": picture.as_posix(),
    }


def _report(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = Table("file", "score", "threshold", "verdict", "regions", "mm²", "overlay")
    for row in rows:
        threshold = "" if row["threshold"] is None else f"{row['threshold']:.4f}"
        verdict = row["decision"] or "?"
        area = f"{row['area_mm2']:.1f}"
        table.add_row(row["file"], f"{row['score']:.4f}", threshold, verdict, str(row["regions"]), area, row["overlay"])
    Console().print(table)
