"""The extractors around a network have one base, which loads torch when one of them is built and not before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.extractors.protocol import RGB, Extractor, ExtractorOptions, Grid, Look, Mask, Rows, on_grid

if TYPE_CHECKING:
    from torch import nn

    from backend.extractors.exported import Position


class NetworkFeatures(Extractor):
    """An extractor whose network torch runs, and another runtime can take over.

    Args:
        model: timm's model with its weights; it is moved to the device.
        options: where, at which size and in which precision it runs.
        name: the model's name, as MODEL_NAME.
        patch: side in pixels of a token's cell.
        dim: columns of a token.
        fingerprint: of the weights and of the way in which tokens are taken; see weights.fingerprint.
        shared: (dim,) unit, a direction that every token has a large part in; see torch_runtime.Agreement.
    """

    runtime = "torch"

    def __init__(
        self,
        model: Any,
        options: ExtractorOptions,
        *,
        name: str,
        patch: int,
        dim: int,
        fingerprint: str,
        shared: Rows | None = None,
    ) -> None:
        from backend.extractors.resizing import DeviceResizer
        from backend.extractors.torch_runtime import TorchRunner, pick_device

        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.patch = patch
        self.dim = dim
        self.fingerprint = fingerprint
        self.shared = shared
        self.precision = options.precision
        self.input_size, self.input_edge = options.input_size, options.input_edge
        self.input_aspect = options.input_aspect
        rows, cols = self.grid(self.input_size, self.input_size)
        self.run = TorchRunner(
            model,
            self.network,
            device=pick_device(options.device),
            precision=options.precision,
            check_size=(rows * patch, cols * patch),
            shared=shared,
        )
        self.resizer = DeviceResizer(self.device) if self.device == "cuda" else None
        self.looks = True

    @property
    def device(self) -> str:
        """See Extractor."""
        return self.run.device

    @abstractmethod
    def network(self, height: int, width: int) -> nn.Module:
        """The TokenNetwork for images of (height, width) px. It shares the extractor's weights."""

    @property
    def way(self) -> dict[str, Any]:
        """The options, beside the model's name, that decide how tokens are taken; what an export must know of."""
        return {}

    def network_of_any_size(self, height: int, width: int) -> tuple[nn.Module, Position | None]:
        """The TokenNetwork that an export traces with a (height, width) px image, and serves images of any size.

        With a Position, its table is the network's second argument.

        Raises:
            NotExported: there is no such network.
        """
        return self.network(height, width), None

    def prepare(self, image: NDArray[np.uint8], grid: Grid, size: tuple[int, int] | None = None) -> RGB:
        """See Extractor."""
        height, width = grid[0] * self.patch, grid[1] * self.patch
        resizer = self.resizer  # another thread may take it away
        on_device = resizer is not None and resizer.device == self.device
        seen = resizer(image, size or image.shape[:2], height, width) if resizer and on_device else None
        return super().prepare(image, grid, size) if seen is None else seen

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor.

        Raises:
            DeviceOutOfMemory: neither the GPU nor the CPU holds one image.
        """
        from backend.extractors.torch_runtime import device_memory

        with device_memory():
            return self.run(images)

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> Rows:
        """See Extractor. Raises DeviceOutOfMemory."""
        if not self.leaves_out:
            return super().extract_part(images, inside)
        from backend.extractors.torch_runtime import device_memory

        with device_memory():
            return on_grid(self.run.part(images, np.flatnonzero(inside)), inside)

    def look(self, images: Sequence[RGB], looks: Sequence[Look | None]) -> list[Any]:
        """See Extractor. Raises DeviceOutOfMemory: as `extract`."""
        from backend.extractors.torch_runtime import device_memory

        with device_memory():
            return self.run.look(images, looks if self.looks else [None] * len(images))

    def leave_to_host(self) -> None:
        """See Extractor."""
        self.resizer, self.looks = None, False
