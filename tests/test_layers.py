"""The one rule of imports: a room of backend/ imports rooms to its left, and no two files import each other."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

BACKEND = Path(__file__).resolve().parent.parent / "backend"

RULE = """
    base < calib, roi_mask < extractors, memory < features, patchcore, infer < storage < service
    < samples, records, evaluation < assurance < api < resnet_api < app < tools < __main__
"""
FLOORS = {room.strip(): floor for floor, rooms in enumerate(RULE.split("<")) for room in rooms.split(",")}

# The rooms that a library belongs to. The longest name that fits decides; any other library is free.
NETWORKS = frozenset({"extractors", "features"})
EDGE = frozenset({"api", "resnet_api", "app", "tools"})
LIBRARIES: dict[str, frozenset[str]] = {
    **dict.fromkeys(["torchvision", "timm", "openvino", "safetensors", "huggingface_hub"], NETWORKS),
    "torch": NETWORKS | {"memory"},
    "faiss": frozenset({"memory"}),
    "sklearn": frozenset({"memory"}),
    "sklearn.metrics": frozenset({"evaluation"}),
    "matplotlib": frozenset({"evaluation"}),
    **dict.fromkeys(["fastapi", "starlette", "prometheus_client", "limits"], EDGE),
    **dict.fromkeys(["dotenv", "pydantic_settings"], frozenset({"base"})),
    **dict.fromkeys(["sqlalchemy", "alembic"], frozenset({"records"})),
    **dict.fromkeys(["uvicorn", "ray"], frozenset({"tools"})),
    "typer": frozenset({"evaluation", "tools"}),
    **dict.fromkeys(["pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"], frozenset()),
    "pickle.UnpicklingError": NETWORKS,  # the name of what torch raises when it refuses to execute a pickle
}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
# `memory.search` hands FAISS's BLAS what only the environment can tell it.
READERS = {"backend.base.config", "backend.memory.search"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is where it stands, `target` the dotted name it asks for."""

    module: str
    target: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.module} (line {self.line})"


def room_of(module: str) -> str:
    """`backend.api.routes.ops` -> `api`; the package itself has no room."""
    return module.split(".")[1] if "." in module else ""


@dataclass(frozen=True)
class House:
    """The modules of a package and all that they import: at the start, inside functions and for types alone."""

    name: str
    trees: dict[str, ast.Module]

    @classmethod
    def at(cls, folder: Path) -> "House":
        trees = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[module] = ast.parse(path.read_text(encoding="utf-8"))
        return cls(folder.name, trees)

    def imports(self) -> Iterator[Import]:
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                for target in self._targets(module, node):
                    yield Import(module, target, getattr(node, "lineno", 0))

    def own_imports(self) -> Iterator[tuple[Import, str]]:
        """Imports of this package's own modules, each with the module it reaches."""
        for imported in self.imports():
            if imported.target.split(".")[0] == self.name:
                yield imported, self.module_of(imported.target)

    def module_of(self, target: str) -> str:
        """The module in a dotted name: `backend.base.images.decode` -> `backend.base.images`."""
        while target not in self.trees and "." in target:
            target = target.rpartition(".")[0]
        return target

    def _targets(self, module: str, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                is_package = any(other.startswith(f"{module}.") for other in self.trees)
                up = module.split(".")[: len(module.split(".")) - node.level + is_package]
                start = ".".join([*up, start]).rstrip(".")
            return [f"{start}.{alias.name}" for alias in node.names]
        return []


def unknown_rooms(house: House) -> list[str]:
    rooms = {room_of(module): module for module in house.trees if room_of(module)}
    return [
        f"{rooms[room]} is in a room that the rule does not name: put it into one that it does, or "
        f"name {room!r} in RULE of tests/test_layers.py and in docs/ARCHITECTURE.md"
        for room in sorted(rooms.keys() - FLOORS.keys())
    ]


def imports_to_the_right(house: House) -> list[str]:
    wrong = []
    for imported, module in house.own_imports():
        ours, theirs = room_of(imported.module), room_of(module) or room_of(imported.target)
        theirs = theirs if theirs in FLOORS or module != house.name else ""
        if ours != theirs and FLOORS.get(theirs, 99 if theirs else -1) >= FLOORS.get(ours, 99 if ours else -1):
            remedy = "move the shared part to the left, or pass it in"
            wrong.append(f"{imported.place} imports {theirs or 'backend'}, which is not to its left: {remedy}")
    return list(dict.fromkeys(wrong))


def circles(house: House) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in house.trees}
    for imported, module in house.own_imports():
        if module not in {imported.module, house.name}:
            graph[imported.module].add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        return ["these files import each other in a circle: " + " <- ".join(err.args[1])]
    return []


def strays(house: House) -> list[str]:
    wrong = []
    for imported in house.imports():
        fits = [library for library in LIBRARIES if f"{imported.target}.".startswith(f"{library}.")]
        if fits and room_of(imported.module) not in (homes := LIBRARIES[max(fits, key=len)]):
            allowed = ", ".join(sorted(homes)) or "nobody"
            wrong.append(f"{imported.place} imports {imported.target}, which belongs to {allowed}")
    return list(dict.fromkeys(wrong))


def readers_of_the_environment(house: House) -> list[str]:
    wrong = []
    for module, tree in house.trees.items():
        names = {
            a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if a.name == "os"
        }
        lines = [
            n.lineno
            for n in ast.walk(tree)
            if (isinstance(n, ast.ImportFrom) and n.module == "os" and {a.name for a in n.names} & ENVIRONMENT)
            or (
                isinstance(n, ast.Attribute)
                and n.attr in ENVIRONMENT
                and isinstance(n.value, ast.Name)
                and n.value.id in names
            )
        ]
        if module not in READERS:
            wrong += [f"{module} (line {line}) reads the environment: make it a setting in config" for line in lines]
    return wrong


Check = Callable[[House], list[str]]
CHECKS: list[Check] = [unknown_rooms, imports_to_the_right, circles, strays, readers_of_the_environment]


@pytest.fixture(scope="module")
def backend() -> House:
    return House.at(BACKEND)


def test_the_architecture_page_draws_the_rooms_that_there_are_and_the_rule_that_holds() -> None:
    page = (BACKEND.parent / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    drawn = re.findall(r"^  (\w+)(?:\.py|/) ", page.split("backend/\n")[1].split("```")[0], re.MULTILINE)
    there = {path.stem for path in BACKEND.iterdir() if not path.name.startswith(("_", "."))} - {"py", "requirements"}
    assert sorted(drawn) == sorted(there - {"config"})
    assert " ".join(RULE.split()) in " ".join(page.split())


def test_the_house_was_read(backend: House) -> None:
    assert {"backend", "backend.base.errors", "backend.base.config"} <= backend.trees.keys()
    assert any(imported.target == "backend.base.errors.InvalidSettings" for imported in backend.imports())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_backend_keeps_the_order_of_its_rooms(backend: House, check: Check) -> None:
    findings = check(backend)
    assert not findings, "\n".join(findings)


BROKEN: list[tuple[Check, dict[str, str], str]] = [
    (unknown_rooms, {"attic": ""}, "name 'attic' in RULE"),
    (unknown_rooms, {"attic/trunk": ""}, "name 'attic' in RULE"),
    (imports_to_the_right, {"base/images": "from backend.infer import run"}, "backend.base.images (line 1) imports"),
    (imports_to_the_right, {"base/images": "from backend import infer", "infer": ""}, "imports infer"),
    (imports_to_the_right, {"base/images": "import backend.infer as engine", "infer": ""}, "imports infer"),
    (imports_to_the_right, {"base/images": "def late():\n    from ..infer import run"}, "images (line 2)"),
    (imports_to_the_right, {"calib": "from .patchcore import rows", "patchcore": ""}, "imports patchcore"),
    (imports_to_the_right, {"patchcore": "from .infer import Scoring", "infer": ""}, "imports infer"),
    (imports_to_the_right, {"api/routes/ops": "from ...app import create_app", "app": ""}, "ops (line 1) imports app"),
    (imports_to_the_right, {"service/host": "from backend.api.schemas import Health", "api/schemas": ""}, "api"),
    (imports_to_the_right, {"base/images": "from backend.attic import box", "attic": ""}, "imports attic"),
    (
        circles,
        {"memory/search": "from .coreset import T", "memory/coreset": "def late():\n    from .search import E"},
        "in a circle",
    ),
    (strays, {"infer": "import timm.layers as L"}, "belongs to extractors, features"),
    (strays, {"storage": "from faiss import read_index"}, "belongs to memory"),
    (strays, {"evaluation/figures": "from sklearn.neighbors import NearestNeighbors"}, "belongs to memory"),
    (strays, {"service/host": "from starlette.concurrency import run_in_threadpool"}, "belongs to api, app"),
    (strays, {"storage": "import pickle"}, "belongs to nobody"),
    (strays, {"features": "from pickle import loads"}, "belongs to nobody"),
    (readers_of_the_environment, {"storage": "import os\nn = os.environ['N']"}, "storage (line 2) reads"),
    (readers_of_the_environment, {"storage": "import os as system\nn = system.getenv('N')"}, "make it a setting"),
    (readers_of_the_environment, {"storage": "from os import environ"}, "make it a setting"),
]

SOUND: list[dict[str, str]] = [
    {"base/config": "import os\nn = os.environ['N']"},
    {"infer": "import os\nfrom os import path\nfrom backend.memory.search import rows\nimport numpy as np"},
    {"service/host": "from .. import __version__\nfrom ..storage import store\nfrom ..base.errors import E"},
    {"api/routes/ops": "from .common import page\nfrom ..schemas import Health\nimport fastapi", "api/schemas": ""},
    {"evaluation/figures": "from sklearn.metrics import roc_auc_score", "memory/search": "import sklearn.neighbors"},
    {"features": "from pickle import UnpicklingError"},
]


def build(folder: Path, files: dict[str, str]) -> House:
    """A small package named backend out of the given texts."""
    for name, text in {"__init__": "__version__ = '0'", "base/errors": "", **files}.items():
        path = folder / "backend" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return House.at(folder / "backend")


@pytest.mark.parametrize(("check", "files", "said"), BROKEN)
def test_a_broken_rule_is_found_and_named(tmp_path: Path, check: Check, files: dict[str, str], said: str) -> None:
    assert said in "\n".join(check(build(tmp_path, files)))


@pytest.mark.parametrize("files", SOUND)
def test_what_the_rules_allow_is_let_through(tmp_path: Path, files: dict[str, str]) -> None:
    house = build(tmp_path, files)
    assert [finding for check in CHECKS for finding in check(house)] == []
