"""ResNet features as PatchCore uses them: layer2 joined with layer3 (Roth et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import WeightsUnavailable
from backend.base.messages import Phrase
from backend.extractors.weights import find_weights, fingerprint, misfit, read_state, unknown_model
from backend.features import RGB, Precision, device_memory, pick_device

if TYPE_CHECKING:
    import torch
    from torch import nn

HUB_NAMES = {"resnet18": "resnet18.tv_in1k"}
_UNUSED = ("layer4.", "fc.")


class ResNetFeatures:
    """layer2 and layer3 (bilinear to layer2's grid) of a frozen ImageNet ResNet, concatenated, L2-normalised.

    Args:
        around: side and stride of the neighbourhoods that each level is averaged over; see ResNetTokens.
        offset: added to the channels before they are normalised; see ResNetTokens.

    A token covers 8×8 pixels, times the stride. Layer4 and the classifier are never built: weights files may lack them.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    runtime = "torch"

    def __init__(
        self,
        model_name: str = "resnet18",
        weights: str = "auto",
        *,
        input_size: int = 448,
        device: str = "auto",
        precision: Precision = "auto",
        around: tuple[int, int] = (1, 1),
        offset: float = 0.0,
        weights_dir: Path | None = None,
    ) -> None:
        import timm
        import torch

        from backend.extractors.torch_runtime import TorchRunner

        hub_name = HUB_NAMES.get(model_name, model_name)
        if not timm.is_model(hub_name):
            raise WeightsUnavailable(model=model_name, reason=unknown_model())
        trunk = Trunk(hub_name)
        load_trunk(trunk.model, find_weights(hub_name, weights, weights_dir), model_name)
        self.name = model_name
        self.model = trunk.model.eval().requires_grad_(False)
        self.input_size = input_size
        self.patch = 8 * around[1]
        self.widths = trunk.widths
        self.dim = sum(trunk.widths)
        self.around, self.offset = around, offset
        self.reach = max(1.0, around[0] / around[1])
        changed = f"|{around}|{offset}" if (around, offset) != ((1, 1), 0.0) else ""
        self.fingerprint = fingerprint(self.model, f"{model_name}|layer2+layer3|bilinear|l2{changed}")
        self.model.to(memory_format=torch.channels_last)
        side = round(input_size / self.patch) * self.patch
        self.run = TorchRunner(
            self.model, self.network, device=pick_device(device), precision=precision, check_size=(side, side)
        )

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.run.device

    def network(self, height: int, width: int) -> nn.Module:
        """See TorchExtractor."""
        from backend.extractors.torch_runtime import ResNetTokens, TokenNetwork

        cfg = self.model.pretrained_cfg
        tokens = ResNetTokens(self.model, dim=self.dim, around=self.around, offset=self.offset)
        return TokenNetwork(tokens, cfg["mean"], cfg["std"])

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See features.Extractor."""
        with device_memory():
            return self.run(images)


class Trunk:
    """timm's ResNet up to layer3, and the widths of layer2 and layer3."""

    def __init__(self, hub_name: str) -> None:
        import timm
        import torch

        self.model = cast("Any", timm.create_model(hub_name, pretrained=False))
        levels: list[dict[str, Any]] = self.model.feature_info[2:4]
        self.widths = tuple(int(level["num_chs"]) for level in levels)
        self.model.layer4 = torch.nn.Identity()
        self.model.fc = torch.nn.Identity()


def load_trunk(model: torch.nn.Module, path: Path, model_name: str) -> None:
    """Load a weights file into a trunk; layer4 and the classifier may be there or not.

    Raises:
        WeightsUnavailable: the file cannot be read, lacks tensors or does not fit.
    """
    state = {k: v for k, v in read_state(path, model_name).items() if not k.startswith(_UNUSED)}
    wanted = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    missing = wanted - state.keys()
    if missing:
        reason = Phrase("tensors_missing", {"file": path.name, "n": len(missing)})
        raise WeightsUnavailable(model=model_name, reason=reason)
    try:
        model.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    except RuntimeError as err:
        raise WeightsUnavailable(model=model_name, reason=misfit(path, err)) from err
