"""FAISS is loaded so that it knows the processor, and nobody else's environment changes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.memory import kernels
from backend.memory.kernels import best_core_type, load_faiss

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
LOAD_AND_TELL = """
import os
from threadpoolctl import threadpool_info
from backend.memory import kernels
kernels.best_core_type = lambda *_: "Haswell"
kernels.load_faiss()
assert "OPENBLAS_CORETYPE" not in os.environ or os.environ["OPENBLAS_CORETYPE"] == "Zen", os.environ
print([i["architecture"] for i in threadpool_info() if "faiss" in i["filepath"] and i["user_api"] == "blas"])
"""


@pytest.mark.parametrize(
    ("numpys", "core_type"),
    [
        ("SapphireRapids", "SkylakeX"),
        ("Cooperlake", "SkylakeX"),
        ("SkylakeX", "SkylakeX"),
        ("Haswell", "Haswell"),
        ("Nehalem", None),
        (None, None),
    ],
)
def test_the_older_blas_is_told_what_the_newer_found(numpys: str | None, core_type: str | None) -> None:
    assert best_core_type(numpys, is_intel=True) == core_type
    assert best_core_type(numpys, is_intel=False) is None


def test_numpys_blas_is_the_one_that_is_asked() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    assert kernels._numpys_architecture()


@pytest.mark.parametrize(("given", "expected"), [(None, "Haswell"), ("Zen", "Zen")])
def test_what_faiss_is_told_is_forgotten_again_and_the_owners_word_counts(given: str | None, expected: str) -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or " avx2 " not in flags.read_text("utf-8"):
        pytest.skip("these kernels need AVX2")
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {} if given is None else {"OPENBLAS_CORETYPE": given}
    command = [sys.executable, "-c", LOAD_AND_TELL]
    told = subprocess.run(
        command, check=False, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert expected in told.stdout


def test_the_module_is_faiss_and_loaded_once() -> None:
    faiss = pytest.importorskip("faiss")
    assert load_faiss() is faiss and load_faiss() is load_faiss()
