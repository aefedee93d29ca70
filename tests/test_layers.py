"""Who may import whom. A new file of backend/ begins with a line in ROOMS."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

BACKEND = Path(__file__).resolve().parent.parent / "backend"
LONGEST_FILE = 400
CATALOGUES = {"backend.base.errors": 700}  # one tree of errors, with a sentence in two languages each

# The floor of each room. A room may import any room of a lower floor.
ROOMS = {
    **dict.fromkeys(["errors", "errors_samples", "notices", "config", "utils", "codecs", "order", "fields"], 0),
    **dict.fromkeys(["accelerator", "kernels"], 0),
    **dict.fromkeys(["features", "features_texture", "features_resnet", "features_grey"], 1),
    **dict.fromkeys(["features_weights", "features_torch", "features_openvino", "features_products"], 1),
    **dict.fromkeys(
        ["patchcore", "coreset", "coreset_passes", "approximate", "density", "spaces", "calib", "roi_mask", "atomic"], 1
    ),
    **dict.fromkeys(["pictures", "scenes", "scenes_render", "overlays", "augment"], 1),
    **dict.fromkeys(["infer", "storage", "reserve", "samples", "ledger", "trash", "debug", "evaluation", "bank"], 2),
    **dict.fromkeys(["inspector", "binding", "fitting", "cache", "host", "lane", "journal", "results", "progress"], 3),
    **dict.fromkeys(["warmup", "passes", "doctor"], 3),
    **dict.fromkeys(["collector", "growing", "rebuild", "scoring", "intake", "predictor", "grey_host"], 3),
    **dict.fromkeys(["schemas", "schemas_samples", "problems", "telemetry"], 4),
    **dict.fromkeys(["metrics", "security", "edge", "routes", "app"], 4),
    **dict.fromkeys(["server", "demo", "bench", "bench_stages", "serve_ray", "cli", "terminal", "__main__"], 4),
    **dict.fromkeys(["presets"], 0),
    **dict.fromkeys(["features_wrapped", "variants", "foreground"], 1),
    **dict.fromkeys(["sets"], 2),
    **dict.fromkeys(["measured"], 3),
    **dict.fromkeys(["evaluate", "gallery", "report", "cli_evaluate"], 4),
}

# On its own floor a room knows nobody but these.
EXTRACTORS = frozenset(room for room in ROOMS if room.startswith("features"))
NOBODY: frozenset[str] = frozenset()
NEIGHBOURS: dict[str, frozenset[str]] = {
    "accelerator": frozenset({"utils"}),
    "errors": frozenset({"notices"}),
    "errors_samples": frozenset({"errors", "notices"}),
    "fields": frozenset({"notices"}),
    "config": frozenset({"errors", "fields", "presets"}),
    "variants": frozenset({"coreset", "patchcore", "foreground"}),
    "utils": frozenset({"errors", "codecs"}),
    **dict.fromkeys(EXTRACTORS, EXTRACTORS),
    "coreset_passes": frozenset({"coreset"}),
    "patchcore": frozenset({"coreset", "coreset_passes", "density", "spaces"}),
    "spaces": frozenset({"coreset"}),
    "scenes": frozenset({"scenes_render"}),
    "evaluation": frozenset({"infer", "storage", "samples"}),
    "host": frozenset({"lane"}),
    "fitting": frozenset({"lane", "passes"}),
    "grey_host": frozenset({"host", "lane"}),
    "predictor": frozenset({"fitting", "grey_host", "lane"}),
    **dict.fromkeys(["samples", "reserve", "ledger", "trash"], frozenset({"storage"})),
    "journal": frozenset({"fitting"}),
    "warmup": frozenset({"cache", "lane"}),
    "passes": frozenset({"lane"}),
    "progress": frozenset({"lane"}),
    "intake": frozenset({"fitting"}),
    "results": frozenset({"binding", "cache", "fitting"}),
    "scoring": frozenset({"inspector", "fitting", "growing", "lane"}),
    "inspector": frozenset({"binding", "fitting", "cache", "host", "lane", "journal", "results", "warmup", "passes"}),
    "growing": frozenset({"inspector", "fitting", "cache", "lane", "results"}),
    "rebuild": frozenset({"inspector", "cache", "fitting", "growing", "lane", "progress"}),
    "collector": frozenset(
        {"inspector", "fitting", "growing", "rebuild", "journal", "lane", "results", "scoring", "intake"}
    ),
    "telemetry": frozenset({"problems"}),
    "security": frozenset({"problems", "telemetry"}),
    "edge": frozenset({"schemas", "problems", "telemetry", "security"}),
    "routes": frozenset({"schemas", "schemas_samples", "problems", "telemetry", "metrics", "security", "edge"}),
    "app": frozenset({"schemas", "problems", "telemetry", "metrics", "security", "edge", "routes"}),
    "doctor": frozenset({"host"}),
    "demo": frozenset({"app", "schemas"}),
    "bench": frozenset({"app", "schemas", "bench_stages"}),
    "evaluate": frozenset({"gallery"}),
    "cli_evaluate": frozenset({"evaluate", "report"}),
    "serve_ray": frozenset({"app", "telemetry"}),
    "cli": frozenset({"terminal", "app", "telemetry", "demo", "bench", "server", "cli_evaluate", "serve_ray"}),
    "__main__": frozenset({"cli"}),
}

# The rooms in which a library may be imported; the longest name that fits decides, any other library is free.
EDGES = frozenset({"app", "routes", "edge", "problems", "security", "telemetry", "metrics", "serve_ray"})
GUESTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(["torch", "torchvision", "timm", "openvino", "safetensors", "huggingface_hub"], EXTRACTORS),
    "torch": EXTRACTORS | {"accelerator"},
    "faiss": frozenset({"kernels"}),
    "sklearn": frozenset({"patchcore"}),
    "sklearn.metrics": frozenset({"evaluation"}),
    **dict.fromkeys(["fastapi", "starlette"], EDGES),
    **dict.fromkeys(["dotenv", "pydantic_settings"], frozenset({"config"})),
    "matplotlib": frozenset({"report"}),
    "prometheus_client": frozenset({"metrics"}),
    "limits": frozenset({"security"}),
    "typer": frozenset({"cli", "cli_evaluate", "terminal"}),
    "uvicorn": frozenset({"cli", "server", "demo", "bench"}),
    "ray": frozenset({"serve_ray"}),
    **dict.fromkeys(["pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"], NOBODY),
    # The name of what torch raises when it refuses to execute a pickle.
    "pickle.UnpicklingError": EXTRACTORS,
}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is where it stands, `target` the dotted name it asks for.

    `at_start` is false for what is imported inside a function or for types only.
    """

    module: str
    target: str
    line: int
    at_start: bool

    @property
    def place(self) -> str:
        return f"{self.module} (line {self.line})"


def room_of(module: str) -> str:
    """`backend.resnet_api.routes` -> `routes`; the package itself has no room."""
    return module.split(".")[1] if "." in module else ""


@dataclass(frozen=True)
class House:
    """The modules of a package and what they import."""

    name: str
    trees: dict[str, ast.Module]
    lengths: dict[str, int]

    @classmethod
    def at(cls, folder: Path) -> "House":
        trees, lengths = {}, {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            trees[module], lengths[module] = ast.parse(text), len(text.splitlines())
        return cls(folder.name, trees, lengths)

    def imports(self) -> Iterator[Import]:
        for module, tree in self.trees.items():
            later = {id(node) for block in _later_blocks(tree) for node in ast.walk(block)}
            for node in ast.walk(tree):
                for target in self._targets(module, node):
                    yield Import(module, target, getattr(node, "lineno", 0), id(node) not in later)

    def own_imports(self) -> Iterator[tuple[Import, str]]:
        """Imports of this package's own modules, each with the room it reaches."""
        for imported in self.imports():
            if imported.target.split(".")[0] == self.name and self.module_of(imported.target) != self.name:
                yield imported, room_of(imported.target)

    def module_of(self, target: str) -> str:
        """The module in a dotted name: `backend.base.images.decode` -> `backend.base.images`."""
        while target not in self.trees and "." in target:
            parent = target.rpartition(".")[0]
            if parent == self.name and room_of(target) in ROOMS:
                return target
            target = parent
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


def _later_blocks(tree: ast.Module) -> list[ast.AST]:
    """Functions, and what stands behind `if TYPE_CHECKING`: importing the module does not run these."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]


def unknown_rooms(house: House) -> list[str]:
    rooms = {room_of(module): module for module in house.trees if room_of(module)}
    return [
        f"{rooms[room]} is a room that this test does not know: give {room!r} a floor in ROOMS of "
        "tests/test_layers.py, and NEIGHBOURS on that floor only if it cannot do without"
        for room in sorted(rooms.keys() - ROOMS.keys())
    ]


def imports_that_point_up(house: House) -> list[str]:
    wrong = []
    for imported, target in house.own_imports():
        room = room_of(imported.module)
        if room == target or target in NEIGHBOURS.get(room, NOBODY):
            continue
        if ROOMS.get(target, 99) >= ROOMS.get(room, 99 if room else -1):
            remedy = "move the shared part down, or pass it in"
            wrong.append(f"{imported.place} imports {target}, which is not below it: {remedy}")
    return list(dict.fromkeys(wrong))


def strays(house: House) -> list[str]:
    wrong = []
    for imported in house.imports():
        fits = [guest for guest in GUESTS if f"{imported.target}.".startswith(f"{guest}.")]
        if fits and room_of(imported.module) not in (homes := GUESTS[max(fits, key=len)]):
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
        if room_of(module) not in {"config", "kernels"}:  # kernels hands a library what only the environment can
            wrong += [f"{module} (line {line}) reads the environment: make it a setting in config" for line in lines]
    return wrong


def circles(house: House) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in house.trees}
    for imported, _ in house.own_imports():
        target = house.module_of(imported.target)
        if imported.at_start and target != imported.module:
            graph[imported.module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        return ["these import each other in a circle: " + " <- ".join(err.args[1])]
    return []


def long_files(house: House) -> list[str]:
    return [
        f"{module} has {lines} lines, more than {LONGEST_FILE}: divide it"
        for module, lines in house.lengths.items()
        if lines > CATALOGUES.get(module, LONGEST_FILE)
    ]


Check = Callable[[House], list[str]]
CHECKS: list[Check] = [
    unknown_rooms,
    imports_that_point_up,
    strays,
    readers_of_the_environment,
    circles,
    long_files,
]


@pytest.fixture(scope="module")
def backend() -> House:
    return House.at(BACKEND)


def test_the_house_was_read(backend: House) -> None:
    assert {"backend", "backend.base.errors", "backend.base.config"} <= backend.trees.keys()
    assert any(imported.target == "backend.base.errors.InvalidSettings" for imported in backend.imports())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_backend_keeps_the_order_of_its_rooms(backend: House, check: Check) -> None:
    findings = check(backend)
    assert not findings, "\n".join(findings)


BROKEN: list[tuple[Check, dict[str, str], str]] = [
    (unknown_rooms, {"attic": ""}, "'attic' a floor in ROOMS"),
    (unknown_rooms, {"attic/trunk": ""}, "'attic' a floor in ROOMS"),
    (
        imports_that_point_up,
        {"utils": "from backend.infer import engine"},
        "backend.base.images (line 1) imports infer",
    ),
    (imports_that_point_up, {"utils": "from backend import infer"}, "imports infer"),
    (imports_that_point_up, {"utils": "import backend.infer as engine"}, "imports infer"),
    (
        imports_that_point_up,
        {"utils": "def late() -> None:\n    from .infer import engine"},
        "backend.base.images (line 2)",
    ),
    (imports_that_point_up, {"calib": "from .patchcore import rows"}, "imports patchcore"),
    (imports_that_point_up, {"infer": "from .storage import store"}, "imports storage"),
    (
        imports_that_point_up,
        {"routes/ops": "from ..app import create_app"},
        "backend.api.routes.ops (line 1) imports app",
    ),
    (imports_that_point_up, {"inspector": "from backend.api.schemas import Health"}, "imports schemas"),
    (imports_that_point_up, {"utils": "from backend.attic import box", "attic": ""}, "imports attic"),
    (strays, {"infer": "import timm.layers as L"}, "belongs to features"),
    (strays, {"storage": "from faiss import read_index"}, "belongs to kernels"),
    (strays, {"evaluation": "from sklearn.neighbors import NearestNeighbors"}, "belongs to patchcore"),
    (strays, {"inspector": "from starlette.concurrency import run_in_threadpool"}, "belongs to app, edge"),
    (strays, {"storage": "import pickle"}, "belongs to nobody"),
    (strays, {"features": "from pickle import loads"}, "belongs to nobody"),
    (
        readers_of_the_environment,
        {"lane": "import os\nn = os.environ['N']"},
        "backend.service.queue (line 2) reads the environment",
    ),
    (
        readers_of_the_environment,
        {"lane": "import os as system\nn = system.getenv('N')"},
        "make it a setting",
    ),
    (readers_of_the_environment, {"lane": "from os import environ"}, "make it a setting"),
    (
        circles,
        {"features": "from .features_texture import T", "features_texture": "from .features import E"},
        "in a circle",
    ),
    (long_files, {"utils": "\n" * (LONGEST_FILE + 1)}, "backend.base.images has 401 lines"),
]

SOUND: list[dict[str, str]] = [
    {"config": "import os\nn = os.environ['N']"},
    {"infer": "import os\nfrom os import path\nfrom backend.patchcore import rows\nimport numpy as np"},
    {"inspector": "from . import errors, __version__\nfrom .storage import store\nfrom .utils import decode"},
    {
        "routes/ops": "from .common import page\nfrom ..schemas import Health\nimport fastapi",
        "routes/common": "",
    },
    {
        "evaluation": "from sklearn.metrics import roc_auc_score",
        "patchcore": "from sklearn.neighbors import NearestNeighbors",
    },
    {"features": "from pickle import UnpicklingError"},
    {
        "features": "def build():\n    from .features_texture import T",
        "features_texture": "if TYPE_CHECKING:\n    from .features import Extractor",
    },
    {"utils": "\n" * LONGEST_FILE},
]


def build(folder: Path, files: dict[str, str]) -> House:
    """A small package named backend out of the given texts."""
    for name, text in {"__init__": "__version__ = '0'", "errors": "", **files}.items():
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
