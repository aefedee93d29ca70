"""Change modules in many small ways, one change at a time, and list the changes that no test notices.

python -m tests.mutants backend/calib.py
python -m tests.mutants backend/infer.py --tests tests/test_infer.py tests/service/test_inspection.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "data", "datasets", "demo", "models", "weights")
LINE = "\n    "


def mirror(module: Path) -> Path:
    """The tests of a module: backend/memory/coreset.py has tests/memory/test_coreset.py."""
    return Path("tests", *module.parts[1:-1], f"test_{module.name}")


def configuration(modules: Sequence[Path], tests: Sequence[Path]) -> str:
    """The setup.cfg that tells mutmut what to change, and which tests ought to notice."""
    options = {
        "source_paths": ["backend"],
        "only_mutate": [module.as_posix() for module in modules],
        "pytest_add_cli_args_test_selection": [test.as_posix() for test in tests],
        # What a process that was forked leaves open is none of the tests' business.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:unraisableexception"],
        "also_copy": ["docs", "experiments"],
        "process_isolation": ["forkserver"],  # a process whose OpenMP has run cannot be forked
        "use_git_change_detection": ["false"],
    }
    return "[mutmut]\n" + "".join(f"{name} = {LINE.join(values)}\n" for name, values in options.items())


def survivors(folder: Path) -> list[str]:
    """The names of the changes that went unnoticed, were tested by nothing or made the tests hang."""
    lines = said(folder, "results").splitlines()
    return [line.split(":")[0].strip() for line in lines if ":" in line]


def said(folder: Path, *command: str) -> str:
    """What mutmut answers in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def run(modules: Sequence[Path], tests: Sequence[Path], *, processes: int) -> int:
    """Change the modules in a copy of the project, print what went unnoticed, and count it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / ROOT.name
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        for beside in (folder, folder / "mutants"):  # the real images are looked for beside the project
            beside.mkdir(exist_ok=True)
            if (ROOT.parent / "shared").is_dir():
                (beside.parent / "shared").symlink_to((ROOT.parent / "shared").resolve())
        (folder / "setup.cfg").write_text(configuration(modules, tests), "utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_DEBUG_TEMPROOT": scratch}
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
        if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
            raise SystemExit("mutmut did not come to its end: the tests must pass before anything is changed")
        unnoticed = survivors(folder)
        for name in unnoticed:
            print(said(folder, "show", name))
    return len(unnoticed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", type=Path, help="files of backend/ to change")
    parser.add_argument("--tests", nargs="+", type=Path, help="tests to run; those that mirror the modules when absent")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if sys.platform == "win32":
        parser.error("mutmut needs a system that can fork: run this under WSL")
    tests = given.tests or [mirror(module) for module in given.modules]
    if missing := [str(path) for path in (*given.modules, *tests) if not (ROOT / path).exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    count = run(given.modules, tests, processes=given.processes)
    print(f"{count} changes went unnoticed" if count else "every change was noticed")


if __name__ == "__main__":
    main()
