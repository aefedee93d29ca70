"""python -m backend: serve, fit, infer, demo, settings."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from backend.config import PROJECT_ROOT, Settings, load_settings, share_metrics
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

    from backend.server import PunctualProtocol, allow_open_files

    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    allow_open_files()
    with _shared_metrics(settings, workers):
        uvicorn.run(
            "backend.app:app",
            host=settings.host,
            port=settings.port,
            workers=workers,
            http=PunctualProtocol,
            ws="none",
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
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = PROJECT_ROOT / "demo",
    good: Annotated[int, typer.Option(min=4, help="Good parts to learn from.")] = 12,
) -> None:
    """Render brake discs, fit, calibrate and inspect them through the real HTTP service; leave pictures."""
    from backend.demo import run_demo

    run_demo(out, good=good, console=console)


@app.command()
def doctor() -> None:
    """Look at this machine and say what to do; exit code 1 when something must be mended."""
    from backend.doctor import examine

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


def settings_table() -> str:
    """Markdown table of the settings: name, default, meaning."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        default = info.default
        shown = "" if default is None or default == () else f"`{int(default) if default in (True, False) else default}`"
        lines.append(f"| `{name.upper()}` | {shown} | {info.description} |")
    return "\n".join(lines)


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

    def __init__(self, settings: Settings) -> None:
        from backend.inspector import Inspector

        self.inspector: Inspector = Inspector(settings)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )

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
        from backend.lane import Job

        progress = self.progress
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
