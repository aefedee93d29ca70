"""The demo: rendered brake discs are learnt and inspected through the real HTTP service; pictures of them are left."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from backend.app import create_app
from backend.base.config import Settings, load_settings
from backend.base.images import encode_png
from backend.evaluation.pictures import overlay, sheet
from backend.extractors.protocol import Extractor
from backend.tools.scenes import MM_PER_PX, Defect, Scene, brake_disc
from backend.tools.terminal import Bars, print_table, say

IDS = {"role_id": "Demo", "roi_id": "BrakeDisc", "mm_per_px": str(MM_PER_PX)}
CALIBRATION_PARTS = 12
SMALLEST_MM2 = 60.0
# Two in a hundred tokens of a dozen parts leave too few rows to tell a missing hole from the spread of good ones.
CORESET_RATE = 0.1
FRESH_PARTS = 3
START_WAIT_S = 120.0
DEFECTS: tuple[Defect, ...] = tuple(name for name in get_args(Defect) if name)


@dataclass(frozen=True)
class Part:
    """A rendered part with a name."""

    name: str
    scene: Scene

    @property
    def png(self) -> bytes:
        """The image as a station would send it."""
        return encode_png(self.scene.image)


def run_demo(out: Path, *, good: int, seed: int = 7) -> dict[str, Any]:
    """Fit on `good` parts, calibrate on more, inspect good and defective ones; write pictures and report.json to `out`.

    Returns:
        The report: settings in use, threshold and one row per inspected part.
    """
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    folders = {"models_dir": out.resolve() / "models", "datasets_dir": out.resolve() / "datasets"}
    record = f"sqlite:///{out.resolve() / 'inspections.db'}"
    settings = _settings(**folders, results_db=record, port=0, log_level="WARNING")
    with Bars() as bars:
        learnt = [Part(f"good_{n:02d}", brake_disc(rng)) for n in bars.track("render", range(good))]
        spare = [Part(f"calibration_{n:02d}", brake_disc(rng)) for n in range(CALIBRATION_PARTS)]
        unseen = [Part(f"unseen_good_{n:02d}", brake_disc(rng)) for n in range(FRESH_PARTS)]
        unseen += [Part(defect, brake_disc(rng, defect=defect)) for defect in DEFECTS]
        with served(settings) as client:
            fitted = _fit(client, learnt)
            scores = [_infer(client, part)["score"] for part in bars.track("calibrate", spare)]
            wanted = {**IDS, "ok_scores": scores, "area_mm2_thr": SMALLEST_MM2}
            calibration = _checked(client.post("/calibrate_ng", json=wanted))
            answers = {part.name: _infer(client, part) for part in bars.track("inspect", unseen)}
            health = client.get("/health").json()
    pictures = {part.name: _picture(part, answers[part.name]) for part in unseen}
    _write(out, pictures, sheet([part.scene.image for part in (learnt[:4] + unseen)], columns=4))
    report = {
        "health": health,
        "score_method": settings.score_method,
        "threshold": calibration["threshold"],
        "parts": [_row(part, answers[part.name]) for part in unseen],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), "utf-8")
    say("fit", f"{fitted['n_images']} images, {fitted['coreset_size']} rows in the memory")
    say("extractor", health["model"])
    for warning in fitted["warnings"]:
        say("warning", warning)
    print_report(report)
    say("pictures", f"{out / 'sheet.png'}, {out / 'parts.png'} and one overlay per part")
    return report


def _settings(**given: Any) -> Settings:
    """The service's settings; without a choice of one's own a memory that suits as few parts as the demo has."""
    settings = load_settings(**given)
    chosen = "coreset_rate" in settings.model_fields_set
    return settings if chosen else settings.model_copy(update={"coreset_rate": CORESET_RATE})


@contextmanager
def served(settings: Settings, extractor: Extractor | None = None) -> Iterator[httpx.Client]:
    """The service on a free port of this machine, in a thread, and a client that speaks to it."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings, extractor), host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, name="demo-server", daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{_port(server)}", timeout=600) as client:
            client.headers["Accept-Language"] = "en"
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def _port(server: uvicorn.Server) -> int:
    waiting = threading.Event()
    for _ in range(int(START_WAIT_S * 20)):
        if server.started:
            port: int = server.servers[0].sockets[0].getsockname()[1]
            return port
        waiting.wait(0.05)
    raise TimeoutError("the service did not start; run `python -m backend serve` to see why")


def _fit(client: httpx.Client, parts: list[Part]) -> dict[str, Any]:
    files = [("images", (f"{part.name}.png", part.png, "image/png")) for part in parts]
    return _checked(client.post("/fit_ok", data=IDS, files=files))


def _infer(client: httpx.Client, part: Part) -> dict[str, Any]:
    form = {**IDS, "shape": json.dumps(part.scene.shape), "heatmap": "absolute"}
    return _checked(client.post("/infer", data=form, files={"image": (f"{part.name}.png", part.png, "image/png")}))


def _checked(response: httpx.Response) -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url.path} answered {response.status_code}: {answer.get('error')}")
    return answer


def _picture(part: Part, answer: Mapping[str, Any]) -> NDArray[np.uint8]:
    low, high = answer["heatmap_range"]
    png = np.frombuffer(base64.b64decode(answer["heatmap_png_base64"]), np.uint8)
    grey = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    heat = (low + np.asarray(grey, np.float32) / 255.0 * (high - low)).astype(np.float32)
    threshold = answer["threshold"]
    return overlay(
        part.scene.image,
        heat,
        low=0.85 * threshold,
        high=1.5 * threshold,
        regions=answer["regions"],
        score=answer["score"],
        threshold=threshold,
        decision=answer["decision"],
        title=part.name,
    )


def _write(out: Path, pictures: Mapping[str, NDArray[np.uint8]], parts: NDArray[np.uint8]) -> None:
    for name, picture in pictures.items():
        (out / f"{name}_overlay.png").write_bytes(encode_png(picture, level=6))
    (out / "sheet.png").write_bytes(encode_png(sheet(list(pictures.values()), columns=4), level=6))
    (out / "parts.png").write_bytes(encode_png(parts, level=6))


def _row(part: Part, answer: Mapping[str, Any]) -> dict[str, Any]:
    truth = part.scene.truth
    hit = sum(bool(truth[r["y"] : r["y"] + r["h"], r["x"] : r["x"] + r["w"]].any()) for r in answer["regions"])
    return {
        "part": part.name,
        "defect": part.scene.defect,
        "score": answer["score"],
        "decision": answer["decision"],
        "area_mm2": sum(region["area_mm2"] for region in answer["regions"]),
        "regions": len(answer["regions"]),
        "regions_on_the_defect": hit,
    }


def about_missed(parts: list[str], *, score_method: str, stand_in: str) -> str:
    """The names of defective parts that passed, and what the setting in use cannot see."""
    blind = []
    if score_method == "percentile":
        blind.append(
            "the 99th percentile cannot see what covers less than 1 % of the part, SCORE_METHOD=max looks for it"
        )
    if stand_in:
        blind.append(f"{stand_in} stands in for a network whose weights are missing, try again with them (WEIGHTS)")
    return "; ".join((", ".join(parts), *blind))


def print_report(report: Mapping[str, Any]) -> None:
    """The threshold, a row for each part, and why defective parts passed if any did."""
    rows = [
        (
            row["part"],
            f"{row['score']:.4f}",
            row["decision"],
            str(row["regions"]),
            f"{row['area_mm2']:.0f}",
            f"{row['regions_on_the_defect']} of {row['regions']}" if row["defect"] else "",
        )
        for row in report["parts"]
    ]
    say("threshold", f"{report['threshold']:.4f}")
    print_table(["part", "score", "verdict", "regions", "mm²", "on the defect"], rows, stderr=True)
    if missed := [row["part"] for row in report["parts"] if row["defect"] and row["decision"] == "ok"]:
        health = report["health"]
        stand_in = health["model"] if health["status"] == "degraded" else ""
        say("passed although defective", about_missed(missed, score_method=report["score_method"], stand_in=stand_in))
