"""What every test may ask for, and what no test may inherit from the machine it runs on."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
from hypothesis import settings

from backend.base.config import GONE, OTHER_SPELLINGS, Settings
from backend.extractors.weights import torch_installed

if TYPE_CHECKING:
    from tests.records.postgres import Server

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = PROJECT_ROOT.parent / "shared" / "data"

# Few examples, and the same ones each time, unless HYPOTHESIS_PROFILE=thorough (as `make test-all` has it).
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class NeedsTorch(pytest.Module):
    """A module of tests that imports torch, on a station's installation."""

    def collect(self) -> NoReturn:
        pytest.skip("needs torch, which a station's installation leaves out", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip, where there is no torch, what cannot even be imported without it."""
    imports_it = re.compile(r"^(import|from) (torch|timm)\b", re.MULTILINE)
    if torch_installed() or not imports_it.search(module_path.read_text(encoding="utf-8")):
        return None
    skipped: pytest.Module = NeedsTorch.from_parent(parent, path=module_path)
    return skipped


def _reaches_settings(name: str) -> bool:
    """Whether the service would read this environment variable."""
    spellings = {field.upper() for field in Settings.model_fields} | {n for ns in OTHER_SPELLINGS.values() for n in ns}
    spellings |= GONE.keys()
    return name.upper().startswith(("BDI_", "PATCHCORE_")) or name.upper() in spellings


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Defaults mean defaults: no setting leaks in from the shell, no hub is asked, nothing is kept here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_reaches_settings, list(os.environ)):
            patch.delenv(name)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("BDI_DATASETS_DIR", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("BDI_RESULTS_DB", f"sqlite:///{tmp_path_factory.mktemp('data') / 'inspections.db'}")
        patch.setitem(Settings.model_config, "env_file", None)
        patch.setitem(Settings.model_config, "yaml_file", None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights that lies beside the project, or a skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images of ../shared/data, which is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def postgres() -> Iterator["Server"]:
    """A PostgreSQL server of the tests' own, or a skip."""
    made = pytest.importorskip("tests.records.postgres", reason="needs psycopg")
    if made.binaries() is None:
        pytest.skip("needs PostgreSQL's server (Debian: apt install postgresql)")
    with made.Server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: each test that takes it runs on both."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'inspections.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    own = server.database()
    yield own
    server.drop(own)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, and new for each test: no test's numbers depend on which ran before."""
    return np.random.default_rng(20_240_917)


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A service that a test started configures logging for its process; the next test starts from scratch."""
    names = ("backend", "uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
