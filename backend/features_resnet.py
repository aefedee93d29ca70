"""ResNet features as PatchCore uses them: layer2 joined with layer3 (Roth et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from backend.errors import WeightsUnavailable
from backend.features import RGB, device_memory, find_weights, fingerprint, normaliser, pick_device, read_state

if TYPE_CHECKING:
    import torch

HUB_NAMES = {"resnet18": "resnet18.tv_in1k"}
_UNUSED = ("layer4.", "fc.")


class ResNetFeatures:
    """layer2 and layer3 (bilinear to layer2's grid) of a frozen ImageNet ResNet, concatenated, L2-normalised.

    A token covers 8×8 pixels. Layer4 and the classifier are never built, so weights files may lack them.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    patch = 8
    runtime = "torch"

    def __init__(
        self,
        model_name: str = "resnet18",
        weights: str = "auto",
        *,
        input_size: int = 448,
        device: str = "auto",
        weights_dir: Path | None = None,
    ) -> None:
        import timm

        hub_name = HUB_NAMES.get(model_name, model_name)
        if not timm.is_model(hub_name):
            raise WeightsUnavailable(model=model_name, reason="timm has no model of that name (MODEL_NAME)")
        trunk = Trunk(hub_name)
        _load(trunk.model, find_weights(hub_name, weights, weights_dir), model_name)
        self.name = model_name
        self.device = pick_device(device)
        self.model = trunk.model.eval().requires_grad_(False).to(self.device)
        self._forward = trunk.forward
        self.input_size = input_size
        self.dim = trunk.dim
        self._normalise = normaliser(trunk.model.pretrained_cfg["mean"], trunk.model.pretrained_cfg["std"], self.device)
        self.fingerprint = fingerprint(self.model, f"{model_name}|layer2+layer3|bilinear|l2")

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See features.Extractor."""
        import torch

        with device_memory(), torch.inference_mode():
            return np.asarray(self._forward(self._normalise(images)).cpu().numpy())


class Trunk:
    """timm's ResNet up to layer3 and the joining of its two levels."""

    def __init__(self, hub_name: str) -> None:
        import timm
        import torch

        self.model = cast("Any", timm.create_model(hub_name, pretrained=False))
        levels: list[dict[str, Any]] = self.model.feature_info[2:4]
        self.dim = sum(int(level["num_chs"]) for level in levels)
        self.model.layer4 = torch.nn.Identity()
        self.model.fc = torch.nn.Identity()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, H/8 · W/8, dim) unit rows."""
        import torch
        from torch.nn import functional

        model = self.model
        stem = model.maxpool(model.act1(model.bn1(model.conv1(batch))))
        layer2 = model.layer2(model.layer1(stem))
        layer3 = functional.interpolate(model.layer3(layer2), layer2.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat((layer2, layer3), dim=1).flatten(2).transpose(1, 2)
        return functional.normalize(joined.float(), dim=-1)


def _load(model: torch.nn.Module, path: Path, model_name: str) -> None:
    state = {k: v for k, v in read_state(path, model_name).items() if not k.startswith(_UNUSED)}
    wanted = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    missing = wanted - state.keys()
    if missing:
        raise WeightsUnavailable(model=model_name, reason=f"{path.name} lacks {len(missing)} tensors of the model")
    try:
        model.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    except RuntimeError as err:
        raise WeightsUnavailable(model=model_name, reason=f"{path.name} does not fit the model: {err}") from err
