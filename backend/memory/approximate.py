"""Large memories searched by their neighbourhoods: sooner, and now and then past the nearest row."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import BackendUnavailable
from backend.memory.kernels import faiss_alone

Array = NDArray[np.float32]

GRAPH_FROM = 8192  # rows; among fewer an exact search takes no longer
_LINKS = 32
_WIDTH_BUILT, _WIDTH = 40, 32  # candidates kept while the graph is made, and while it is searched
_ROUNDING = {False: 2.0**-16, True: 2.0**-10}  # of a distance between unit rows, in float32 and to float16


class GraphRows:
    """Rows of a memory in a graph of near ones, which is walked towards a patch (HNSW: Malkov & Yashunin 2020).

    What it proposes are true rows, and who asks measures them: where it misses the nearest, the distance to the rows
    comes out too large and never too small, so that no defect looks nearer to the good parts than it is. Where density
    weighs distances the row that is found decides by how much, and one that is not the nearest can weigh more. Of rows
    that many others equal it finds fewer. The graph is the same each time it is made.

    Args:
        rows: (N, D) float32.
        half: hold them in float16, which takes half the memory and less time; distances are measured in float32 still.
    """

    alone = True

    def __init__(self, rows: Array, *, half: bool = False) -> None:
        with faiss_alone() as faiss:  # several threads would link rows in the order that they happen to come in
            self._index = _empty_graph(faiss, rows.shape[1], half)
            self._index.train(rows)
            self._index.add(rows)
        self._slack = _ROUNDING[half] * float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max()))
        self.nbytes = _graph_bytes(rows, half)

    def nearest(self, q: Array, m: int) -> tuple[Array, NDArray[np.int64]]:
        """Lower bounds of squared distances (T, m), ascending, and the rows they are of; a nearer one may be missed."""
        with faiss_alone():
            squares, rows = self._index.search(q, m)
        bounds = np.square(np.maximum(np.sqrt(np.maximum(squares, 0)) - self._slack, 0))
        # Where the walk came to fewer than m, nothing is known: the patch is searched in full.
        bounds[(rows < 0).any(axis=1)] = 0
        return bounds, rows


def _empty_graph(faiss: Any, width: int, half: bool) -> Any:
    index = (
        faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, _LINKS) if half else faiss.IndexHNSWFlat(width, _LINKS)
    )
    index.hnsw.efConstruction, index.hnsw.efSearch = _WIDTH_BUILT, _WIDTH
    return index


def graph_rows(rows: Array, *, half: bool = False, room: float = np.inf) -> GraphRows | None:
    """The rows as a graph, if there are GRAPH_FROM of them and both together take no more than `room` bytes.

    A model that no cache can keep would have its graph made anew for each inspection.
    """
    pays = len(rows) >= GRAPH_FROM and rows.nbytes + _graph_bytes(rows, half) <= room
    return GraphRows(rows, half=half) if pays else None


def _graph_bytes(rows: Array, half: bool) -> int:
    return rows.nbytes // (1 + half) + 8 * _LINKS * len(rows)


def require_graphs() -> None:
    """Raise BackendUnavailable where FAISS, which makes the graphs, is not installed."""
    if find_spec("faiss") is None:
        raise BackendUnavailable(option="KNN_INDEX", value="hnsw", package="faiss-cpu")
