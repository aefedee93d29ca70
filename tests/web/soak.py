"""The station's view, left open while the line posts: does it stay small, and does it keep up?

    python -m tests.web.soak                            # 20,000 parts at 40 a second
    python -m tests.web.soak --parts 2000 --rate 20

A service runs in a process of its own. Verdicts are written into its record as its writer does it, without inspections,
so that they come as fast as wanted. Every half second the page is asked which part it shows; it is late by the time
since the part after that one was committed. Its memory is that of Chromium's process for the page: its own, its part of
what it shares with other processes too, and the JavaScript heap. Nothing follows the page's traffic
meanwhile, as a debugger would: what is kept for one would count as the page's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from websockets.sync.client import connect

from backend.records.database import Database
from backend.records.entries import InspectionDraft
from backend.records.own_chain import OwnChain
from backend.records.record import now_us
from tests.benchmarks.bench_records import made
from tests.faults.service import running
from tests.web.conftest import ARGUMENTS, CHROMIUM

SHOWN = "document.getElementById('st-part').textContent"
EMPTY = "Boolean(document.getElementById('st-empty') && !document.getElementById('st-empty').hidden)"
HEAP = "performance.memory.usedJSHeapSize"
NODES = "document.querySelectorAll('*').length"

LOOK_S = 0.5
SETTLED = 0.1  # of the parts, before which the page's memory is not looked at
MOST_MB = 150
MOST_LATE_S = 1.0


@dataclass
class Line:
    """Writes parts, and remembers when each was committed. Part n is called n, in six digits."""

    url: str
    parts: int
    rate: float
    committed: list[float] = field(default_factory=list)

    def run(self) -> None:
        chain = OwnChain(Database(self.url))
        begun = time.monotonic()
        for n, record in enumerate(made(self.parts)):
            time.sleep(max(0.0, begun + n / self.rate - time.monotonic()))
            part = replace(record, part_id=f"{n:06d}", station_id="A", time_us=now_us())
            chain.append([InspectionDraft.of(part)])
            self.committed.append(time.monotonic())
        chain.close()
        chain.database.close()

    def late(self, shown: int, now: float) -> float:
        """How long the part after `shown` has been there."""
        return max(0.0, now - self.committed[shown + 1]) if shown + 1 < len(self.committed) else 0.0


class Watched:
    """Chromium with one page that is asked now and then what it shows.

    Args:
        folder: where it keeps what it keeps.
    """

    def __init__(self, folder: Path, url: str) -> None:
        own = ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--enable-precise-memory-info"]
        command = [str(CHROMIUM), *ARGUMENTS, *own, "--window-size=1280,900", url]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        place = folder / "DevToolsActivePort"
        while not (place.exists() and place.read_text().strip()):
            time.sleep(0.1)
        found = httpx.get(f"http://127.0.0.1:{place.read_text().split()[0]}/json").json()
        pages = [one["webSocketDebuggerUrl"] for one in found if one["type"] == "page"]
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(pages[0]))
        self._asked = 0

    def ask(self, expression: str) -> Any:
        """The value of some JavaScript."""
        self._asked += 1
        asked = {"id": self._asked, "method": "Runtime.evaluate"}
        self._socket.send(json.dumps({**asked, "params": {"expression": expression, "returnByValue": True}}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._asked:
                return answer["result"]["result"].get("value")

    def memory(self) -> dict[str, float]:
        """MB of the page's process: its own, with its part of what it shares, and the JavaScript heap."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        pages = [one for one in children if "--type=renderer" in one.cmdline()]
        own = [one for one in pages if not {"--top-chrome-webui", "--extension-process"} & {*one.cmdline()}]
        largest = max((one.memory_full_info() for one in own), key=lambda size: size.uss)
        return {"own_mb": largest.uss / 2**20, "pss_mb": largest.pss / 2**20, "heap_mb": self.ask(HEAP) / 2**20}

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(30)


def watch(page: Watched, line: Line) -> dict[str, Any]:
    """Look at the page until the last part is shown."""
    late: list[float] = []
    sizes: list[dict[str, float]] = []
    deadline = time.monotonic() + line.parts / line.rate * 1.5 + 60
    shown = -1
    while shown < line.parts - 1:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
        text = page.ask(SHOWN).split(" ", 1)[0]
        if not text.isdecimal():
            continue
        shown = int(text)
        late.append(line.late(shown, time.monotonic()))
        if len(late) % 20 == 0:
            sizes.append({"parts": shown, **page.memory()})
            print(
                json.dumps({"late_s": round(late[-1], 2), **{k: round(v, 1) for k, v in sizes[-1].items()}}), flush=True
            )
    settled = [size for size in sizes if size["parts"] > SETTLED * line.parts] or sizes
    ranked = sorted(late)
    return {
        "parts": line.parts,
        "shown": shown + 1,
        "minutes": round((line.committed[-1] - line.committed[0]) / 60, 2),
        "late_s": {
            "median": ranked[len(ranked) // 2],
            "p99": ranked[int(0.99 * (len(ranked) - 1))],
            "worst": ranked[-1],
        },
        "most": {name: round(max(size[name] for size in settled), 1) for name in ("own_mb", "pss_mb", "heap_mb")},
        "first": {name: round(value, 1) for name, value in settled[0].items()},
        "last": {name: round(value, 1) for name, value in settled[-1].items()},
        "nodes": page.ask(NODES),
    }


def soak(parts: int, rate: float) -> dict[str, Any]:
    """Run service, line and page; what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with running(root) as service:
            page = Watched(root / "browser", f"{service.url}/#/station")
            while not page.ask(EMPTY):
                time.sleep(0.1)
            line = Line(f"sqlite:///{root / 'inspections.db'}", parts, rate)
            writer = threading.Thread(target=line.run, daemon=True)
            writer.start()
            found = watch(page, line)
            writer.join(60)
            page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=40.0, help="parts a second")
    given = parser.parse_args()
    found = soak(given.parts, given.rate)
    print(json.dumps(found, indent=1))
    small = found["most"]["pss_mb"] < MOST_MB
    prompt = found["late_s"]["worst"] < MOST_LATE_S
    raise SystemExit(0 if small and prompt and found["shown"] == found["parts"] else 1)


if __name__ == "__main__":
    main()
