"""Loading FAISS so that its matrix products use what the processor has.

Its wheels bring an OpenBLAS of 2021, which does not know Intel's later processors and takes the kernels of 2004 for
them, four times slower than those that run there. NumPy's newer one knows; the older is told when it is loaded.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_info

_NUMPYS = "libscipy_openblas"  # what its wheels, and SciPy's, call their OpenBLAS
_VARIABLE = "OPENBLAS_CORETYPE"
_LOADING = Lock()  # the environment belongs to all threads
_SAME_AS = {"Haswell": "Haswell", "SkylakeX": "SkylakeX", "Cooperlake": "SkylakeX", "SapphireRapids": "SkylakeX"}


def load_faiss() -> Any:
    """The module. Raises ImportError where FAISS is not installed."""
    with _LOADING:
        return _loaded()


@contextmanager
def faiss_alone() -> Iterator[Any]:
    """The module, while what this thread asks of it keeps to this thread: OpenMP has a number of threads for each."""
    faiss = load_faiss()
    team = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(team)


@cache
def _loaded() -> Any:
    with _core_type(best_core_type(_numpys_architecture(), _is_intel())):
        import faiss
    return faiss


def best_core_type(numpys: str | None, is_intel: bool) -> str | None:
    """What to call the processor before the older OpenBLAS; None to let it look for itself, as it can AMD's.

    Args:
        numpys: the kernels that NumPy's OpenBLAS chose; None with another library.
    """
    return _SAME_AS.get(numpys or "") if is_intel else None


def _numpys_architecture() -> str | None:
    own = (info for info in threadpool_info() if info["prefix"] == _NUMPYS)
    return next((info.get("architecture") for info in own), None)


def _is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return "GenuineIntel" in (cpuinfo.read_text("utf-8") if cpuinfo.is_file() else platform.processor())


@contextmanager
def _core_type(name: str | None) -> Iterator[None]:
    """OpenBLAS libraries loaded meanwhile take the processor for `name`, unless the machine's owner has said what."""
    if name is None or _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
