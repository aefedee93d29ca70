"""python -m backend: serve, fit, infer, rebuild, evaluate, bank, demo, settings."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backend.api.catalogue import sentence
from backend.base.config import PROJECT_ROOT, Settings, load_settings, settings_table, share_metrics
from backend.base.errors import InspectionError
from backend.evaluation.cli import ManyNumbers, evaluate

if TYPE_CHECKING:
    from backend.service.inspection import Inspector
    from backend.service.jobs import Job

app = typer.Typer(help="Visual inspection that has only seen good parts.", no_args_is_help=True, add_completion=False)
console = Console(stderr=True)

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
Role = Annotated[str, typer.Option(help="role_id of the model.")]
Roi = Annotated[str, typer.Option(help="roi_id of the model.")]
Recipe = Annotated[str, typer.Option(help="Recipe of the model.")]
MmPerPx = Annotated[float, typer.Option(min=1e-6, help="Millimetres per pixel.")]
ShapeJson = Annotated[str | None, typer.Option("--shape", help="JSON of the part's shape inside the ROI.")]


def main() -> None:
    """Run the command line; an InspectionError ends it with its sentence and exit code 1."""
    try:
        app()
    except InspectionError as err:
        console.print(f"[red]error[/]: {sentence(err, 'en')}", highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the models folder.")] = 1,
) -> None:
    """Serve the HTTP API."""
    import uvicorn

    from backend.extractors.weights import find_weights
    from backend.service.host import WEIGHTS_DIR
    from backend.tools.serve import IDLE_S, PunctualProtocol, allow_open_files, check_address

    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    check_address(settings.host, settings.port)
    if workers > 1 and settings.require_pretrained and settings.model_name != "texture":
        # Of several workers that all fail at the start, uvicorn would only say that they did, with exit code 0.
        find_weights(settings.model_name, settings.weights, WEIGHTS_DIR)
    allow_open_files()
    with _shared_metrics(settings, workers):
        uvicorn.run(
            "backend.app:app",
            host=settings.host,
            port=settings.port,
            workers=workers,
            http=PunctualProtocol,
            ws="none",
            timeout_keep_alive=IDLE_S,
            timeout_worker_healthcheck=60,  # a starved worker is not a dead one
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=30,
        )


@contextmanager
def _shared_metrics(settings: Settings, workers: int) -> Iterator[None]:
    """The folder in which workers share their metrics; one worker alone needs none."""
    if settings.prometheus_multiproc_dir is not None:
        settings.prometheus_multiproc_dir.mkdir(parents=True, exist_ok=True)
        share_metrics(settings.prometheus_multiproc_dir)
        yield
    elif workers == 1:
        yield
    else:
        with tempfile.TemporaryDirectory(prefix="bdi-metrics-") as folder:
            share_metrics(Path(folder))
            yield


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")],
    role: Role = "cli",
    roi: Roi = "default",
    recipe: Recipe = "default",
    mm_per_px: MmPerPx = 1.0,
    shape: ShapeJson = None,
) -> None:
    """Build the memory of a model from a folder of good parts."""
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.service.fitting import Fitter

    key, mask, paths = ModelKey.of(role, roi, recipe), parse_shape(shape), images_in([folder])
    with _Session(load_settings()) as session:
        result = Fitter(session.inspector).fit(key, _files(paths, mask), mm_per_px=mm_per_px, job=session.job())
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
    shape: ShapeJson = None,
    out: Annotated[Path, typer.Option(help="Folder for the overlay pictures.")] = Path("overlays"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
) -> None:
    """Inspect images and write an overlay picture of each."""
    from backend.base.keys import ModelKey
    from backend.roi_mask import parse_shape
    from backend.tools.terminal import print_rows, row_of, write_overlay

    key, mask, paths = ModelKey.of(role, roi, recipe), parse_shape(shape), images_in(files)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with _Session(load_settings()) as session:
        for path, file in zip(session.track(paths, "inspect"), _files(paths, mask), strict=True):
            result = session.inspector.infer(key, file, mm_per_px=mm_per_px, heatmap="none")
            picture = write_overlay(out, path, result)
            rows.append(row_of(path, result, picture))
        session.warn(result.warnings)
    print_rows(rows, as_json)


@app.command()
def rebuild(
    role: Annotated[str | None, typer.Option(help="Only models of this role_id.")] = None,
    roi: Annotated[str | None, typer.Option(help="Only models of this roi_id.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only models of this recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also memories that are neither lost nor foreign.")] = False,
) -> None:
    """Rebuild memories from the stored samples: those that are lost, and those that another extractor made."""
    from backend.samples.collector import Collector

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
    from backend.tools.demo import run_demo

    run_demo(out, good=good, console=console)


app.command(cls=ManyNumbers)(evaluate)


@app.command()
def bank(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images of good parts.")],
    coreset_rate: Annotated[float, typer.Option(min=1e-4, max=1, help="Rows for each patch of the images.")] = 0.01,
    mirror: Annotated[bool, typer.Option(help="Know the parts mirrored, too.")] = True,
    version: Annotated[str | None, typer.Option("--embedding-version", help="How patches become vectors.")] = None,
) -> None:
    """Build the memory bank and the threshold of the ResNet18 API from a folder of good parts."""
    from backend.extractors.grey import RECIPES, RECOMMENDED
    from backend.resnet_api.predictor import Predictor

    if version is not None and version not in RECIPES:
        raise typer.BadParameter(f"known versions are {', '.join(RECIPES)}")
    paths = images_in([folder])
    predictor = Predictor(load_settings())
    with _progress() as progress:
        built = predictor.build(
            _files(paths),
            coreset_rate=coreset_rate,
            mirrored=mirror,
            version=version or RECOMMENDED,
            job=_shown_job(progress),
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
    from backend.tools.bench import Plan, run_bench

    shown = {"fits": fits, "sides": sides, "clients": clients}
    numbers: dict[str, Any] = {
        name: tuple(int(n) for n in text.split(",") if n.strip()) for name, text in shown.items()
    }
    form = "jpg" if jpeg else "png"
    plan = Plan(**numbers, requests=requests, form=form, http=not stages, reference=reference)
    run_bench(plan, out=out, console=Console())


@app.command()
def doctor() -> None:
    """Look at this machine and say what to do; exit code 1 when something must be mended."""
    from rich.table import Table

    from backend.tools.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    findings = examine(load_settings())
    table = Table("", "what", "how it is, and what to do", show_lines=False)
    for finding in findings:
        table.add_row(marks[finding.level], finding.what, finding.says)
    Console().print(table)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


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


class _Session:
    """An inspector without HTTP, and progress bars on standard error."""

    def __init__(self, settings: Settings, inspector: Inspector | None = None) -> None:
        from backend.service.inspection import Inspector

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
            console.print(f"[yellow]warning[/]: {sentence(notice, 'en')}", highlight=False)

    def job(self) -> Job:
        return _shown_job(self.progress)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _shown_job(progress: Progress) -> Job:
    """A job whose stages are bars of `progress`."""
    from backend.service.jobs import Job

    tasks: dict[str, Any] = {}

    class Shown(Job):
        def report(self, stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

    return Shown()


def _files(paths: list[Path], shape: Any = None) -> list[Any]:
    from backend.service.images import ImageFile

    return [ImageFile.named(path.name, path.read_bytes, shape) for path in paths]
