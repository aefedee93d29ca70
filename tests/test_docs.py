"""The documentation names what there is, and its commands run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backend.api.catalogue import ERRORS
from backend.app import create_app
from backend.base.config import OTHER_SPELLINGS, Settings, settings_table
from backend.tools.demo import served
from tests.parts import encoded, part

ROOT = Path(__file__).resolve().parent.parent
DOCS = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
PUBLIC = DOCS | {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "README.es.md")}


def test_the_settings_table_is_the_one_the_program_prints() -> None:
    table = DOCS["DEV_GUIDE.md"].split("<!-- settings: python -m backend settings -->\n")[1]
    assert table.split("<!-- end of settings -->")[0].strip() == settings_table().strip()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_with_a_sentence(name: str) -> None:
    assert f"`{name.upper()}`" in DOCS["DEV_GUIDE.md"]
    assert (Settings.model_fields[name].description or "").endswith(".")


@pytest.mark.parametrize("spelling", sorted(n for names in OTHER_SPELLINGS.values() for n in names))
def test_every_other_spelling_is_documented(spelling: str) -> None:
    assert f"`{spelling}`" in DOCS["DEV_GUIDE.md"]


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in DOCS["API_REFERENCE.md"]


def test_every_route_is_documented() -> None:
    routes = {
        f"{method.upper()} {path}" for path, methods in create_app().openapi()["paths"].items() for method in methods
    }
    assert {"GET /health", "POST /fit_ok", "POST /calibrate_ng", "POST /infer"} <= routes
    assert not {route for route in routes if not any(route in text for text in DOCS.values())}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_links_between_documents_lead_somewhere(name: str) -> None:
    folder = ROOT / "docs" if name in DOCS else ROOT
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PUBLIC[name]):
        assert (folder / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_links_to_a_heading_name_one_that_is_there(name: str) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", PUBLIC[name]):
        text = PUBLIC[Path(path).name] if path else PUBLIC[name]
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {anchor_of(heading) for heading in headings}, f"{name} links to {path}#{anchor}"


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]|²", "", heading.lower()).replace(" ", "-")


def test_the_tour_by_curl_runs_against_the_service(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "models", model_name="texture")
    with served(settings) as client:
        run = subprocess.run(
            ["bash", ROOT / "tests" / "smoke.sh"],
            env={"URL": str(client.base_url).rstrip("/"), "PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"decision"' in run.stdout
    assert "every block of docs/curl_examples.md was answered" in run.stdout


@pytest.mark.parametrize("name", ["README.md", "README.es.md"])
def test_the_tour_of_a_readme_calibrates_with_what_it_measured(tmp_path: Path, name: str) -> None:
    (tour,) = (block for block in re.findall(r"```sh\n(.*?)```", PUBLIC[name], re.DOTALL) if "calibrate_ng" in block)
    for number in range(1, 6):
        (tmp_path / f"good{number}.png").write_bytes(encoded(part(number)))
    (tmp_path / "part.png").write_bytes(encoded(part(50, defect=True)))
    with served(Settings(models_dir=tmp_path / "models", model_name="texture")) as client:
        here = tour.replace("localhost:8000", str(client.base_url).rstrip("/"))
        run = subprocess.run(
            ["bash", "-e", "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        judged = json.JSONDecoder().raw_decode(run.stdout, run.stdout.rindex('{"role_id'))[0]
        state = client.get("/manifest", params={"role_id": "Master1", "roi_id": "Pattern"}).json()
    assert judged["decision"] == "ng" and judged["regions"]
    assert state["calibration"]["n_ok"] == 3
    assert 0 < state["calibration"]["threshold"] < judged["score"]
