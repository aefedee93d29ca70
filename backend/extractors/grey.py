"""ResNet18 features of grey images, as the ResNet18 web API takes them; a named recipe says what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.extractors.resnet import HUB_NAMES, Trunk, load_trunk
from backend.extractors.weights import find_weights
from backend.features import RGB, fingerprint, normaliser, pick_device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class GreyRecipe:
    """How a patch becomes a vector.

    `imagenet`: pixels are normalised with ImageNet's mean and deviation instead of staying in 0–1.
    `windows`: side of the window over which layer2 and layer3 are averaged, each on its own grid, before they are
    joined (Roth et al. 2022, eq. 2); 1 takes each patch alone.
    `level`: layer2 and layer3 are brought to unit length before they are joined, so that neither outweighs the other.
    """

    imagenet: bool = True
    windows: tuple[int, int] = (1, 1)
    level: bool = False


RECIPES = {
    "resnet18_layer2_3_concat_v1": GreyRecipe(imagenet=False),
    "resnet18_imagenet_layer2_3_concat": GreyRecipe(),
    "resnet18_imagenet_layer2avg5_layer3avg3_level_concat": GreyRecipe(windows=(5, 3), level=True),
}
DOCUMENTED = "resnet18_layer2_3_concat_v1"
RECOMMENDED = "resnet18_imagenet_layer2avg5_layer3avg3_level_concat"


class GreyResNet:
    """layer2 and layer3 (bilinear to layer2's grid) of ResNet18, concatenated, every `stride`-th patch, unit rows.

    An Extractor for square images of `input_size` px whose three channels are equal.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    name = "resnet18"
    runtime = "torch"

    def __init__(
        self,
        version: str = RECOMMENDED,
        weights: str = "auto",
        *,
        input_size: int = 256,
        stride: int = 1,
        device: str = "auto",
        weights_dir: Path | None = None,
    ) -> None:
        hub_name = HUB_NAMES["resnet18"]
        trunk = Trunk(hub_name)
        load_trunk(trunk.model, find_weights(hub_name, weights, weights_dir), "resnet18")
        self.version = version
        self.recipe = RECIPES[version]
        self.device = pick_device(device)
        self.model = trunk.model.eval().requires_grad_(False).to(self.device)
        self.input_size = input_size
        self.patch = 8 * stride
        self.stride = stride
        self.dim = sum(trunk.widths)
        config = self.model.pretrained_cfg
        mean, std = (config["mean"], config["std"]) if self.recipe.imagenet else ((0.0,) * 3, (1.0,) * 3)
        self._normalise = normaliser(mean, std, self.device)
        self.fingerprint = fingerprint(self.model, f"{version}|{stride}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches: input_size / 8 rounded up, every stride-th of them."""
        side = ceil(ceil(self.input_size / 8) / self.stride)
        return side, side

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See features.Extractor."""
        import torch

        with torch.inference_mode():
            return np.asarray(self._embed(self._normalise(images)).cpu().numpy())

    def _embed(self, batch: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        model = self.model
        stem = model.maxpool(model.act1(model.bn1(model.conv1(batch))))
        layer2 = model.layer2(model.layer1(stem))
        layer3 = model.layer3(layer2)
        layer2, layer3 = (_averaged(x, side) for x, side in zip((layer2, layer3), self.recipe.windows, strict=True))
        layer3 = functional.interpolate(layer3, layer2.shape[-2:], mode="bilinear", align_corners=False)
        if self.recipe.level:
            layer2, layer3 = functional.normalize(layer2, dim=1), functional.normalize(layer3, dim=1)
        joined = torch.cat((layer2, layer3), dim=1)[:, :, :: self.stride, :: self.stride]
        return functional.normalize(joined.flatten(2).transpose(1, 2).float(), dim=-1)


def _averaged(level: torch.Tensor, side: int) -> torch.Tensor:
    from torch.nn import functional

    return level if side == 1 else functional.avg_pool2d(level, side, 1, side // 2, count_include_pad=False)
