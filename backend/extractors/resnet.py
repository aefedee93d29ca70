"""ResNet features as PatchCore uses them: layer2 joined with layer3 (Roth et al. 2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.base.errors import WeightsUnavailable
from backend.base.messages import Phrase
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import ExtractorOptions, Grid
from backend.extractors.weights import find_weights, fingerprint, misfit, read_state, torch_installed, unknown_model

if TYPE_CHECKING:
    import torch
    from torch import nn

HUB_NAMES = {"resnet18": "resnet18.tv_in1k"}
PATCH = 8
_UNUSED = ("layer4.", "fc.")


def is_resnet(model_name: str) -> bool:
    """Whether `model_name` is one of timm's ResNets, whose layer2 and layer3 are used."""
    return model_name.startswith(("resnet", "wide_resnet"))


class ResNetFeatures(NetworkFeatures):
    """layer2 and layer3 of a frozen ImageNet ResNet, averaged over neighbourhoods, joined, shifted and L2-normalised.

    A token covers 8×8 pixels, times the stride. ResNetTokens says how the levels are joined and what the offset is for.
    layer4 and the classifier are never built: weights files may lack them.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    def __init__(self, options: ExtractorOptions) -> None:
        import torch

        from backend.extractors.tokens import alternating

        self.window, self.stride = options.patch_size or 3, options.stride
        self.offset, self.reach = options.offset, max(1.0, self.window / self.stride)
        model = trunk(options)
        taken = (self.window, self.stride), self.offset
        changed = f"|{taken[0]}|{taken[1]}" if taken != ((1, 1), 0.0) else ""
        dim = _dim(model)
        super().__init__(
            model.to(memory_format=torch.channels_last),
            options,
            name=options.model_name,
            patch=PATCH * self.stride,
            dim=dim,
            shared=alternating(dim).numpy() / dim**0.5,
            fingerprint=fingerprint(model, f"{options.model_name}|layer2+layer3|bilinear|l2{changed}"),
        )

    @property
    def way(self) -> dict[str, Any]:
        """See NetworkFeatures."""
        return {"patch_size": self.window, "stride": self.stride, "offset": self.offset}

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        from backend.extractors.tokens import ResNetTokens, TokenNetwork

        cfg = self.model.pretrained_cfg
        windows = (self.window, self.window)
        tokens = ResNetTokens(self.model, windows=windows, stride=self.stride, offset=self.offset)
        return TokenNetwork(tokens, cfg["mean"], cfg["std"])


@dataclass(frozen=True, kw_only=True)
class GreyEmbedding:
    """How the ResNet18 web API turns a patch into a vector.

    `imagenet`: pixels are normalised with ImageNet's mean and deviation instead of staying in 0–1.
    `windows` and `level`: see ResNetTokens.
    """

    imagenet: bool = True
    windows: tuple[int, int] = (1, 1)
    level: bool = False


EMBEDDING_VERSIONS = {
    "resnet18_layer2_3_concat_v1": GreyEmbedding(imagenet=False),
    "resnet18_imagenet_layer2_3_concat": GreyEmbedding(),
    "resnet18_imagenet_layer2avg5_layer3avg3_level_concat": GreyEmbedding(windows=(5, 3), level=True),
}
DOCUMENTED = "resnet18_layer2_3_concat_v1"
RECOMMENDED = "resnet18_imagenet_layer2avg5_layer3avg3_level_concat"


class GreyResNet(NetworkFeatures):
    """layer2 and layer3 of ResNet18, joined, every n-th patch (`stride`), unit rows.

    An Extractor for square images of `input_size` px whose three channels are equal. It always computes in fp32, as
    the banks that it is compared with were made.

    Args:
        options: `model_name`, neighbourhoods, offset and precision are not read.
        version: which of EMBEDDING_VERSIONS; a bank's config.json names its own.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    def __init__(self, options: ExtractorOptions, version: str = RECOMMENDED) -> None:
        if not torch_installed():
            raise WeightsUnavailable(model="resnet18", reason=Phrase("needs_full_installation"))
        options = replace(options, model_name="resnet18", precision="fp32")
        self.version, self.embedding = version, EMBEDDING_VERSIONS[version]
        self.stride = options.stride
        model = trunk(options)
        super().__init__(
            model,
            options,
            name=options.model_name,
            patch=PATCH * self.stride,
            dim=_dim(model),
            fingerprint=fingerprint(model, f"{version}|{self.stride}"),
        )

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches, the same for every ROI: input_size / 8 rounded up, every stride-th of them."""
        side = ceil(ceil(self.input_size / PATCH) / self.stride)
        return side, side

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        from backend.extractors.tokens import ResNetTokens, TokenNetwork

        cfg, own = self.model.pretrained_cfg, self.embedding
        mean, std = (cfg["mean"], cfg["std"]) if own.imagenet else ((0.0,) * 3, (1.0,) * 3)
        tokens = ResNetTokens(
            self.model, windows=own.windows, zeros_outside=False, level=own.level, thinned=self.stride
        )
        return TokenNetwork(tokens, mean, std)


def trunk(options: ExtractorOptions) -> Any:
    """Timm's ResNet up to layer3 with its weights, in which layer4 and the classifier do nothing.

    Raises:
        WeightsUnavailable: timm has no such model, or its weights cannot be found, read or fitted to it.
    """
    import timm
    import torch

    hub_name = HUB_NAMES.get(options.model_name, options.model_name)
    if not timm.is_model(hub_name):
        raise WeightsUnavailable(model=options.model_name, reason=unknown_model())
    model = cast("Any", timm.create_model(hub_name, pretrained=False))
    model.layer4 = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    _load(model, find_weights(hub_name, options.weights, options.weights_dir), options.model_name)
    return model


def _load(model: torch.nn.Module, path: Path, model_name: str) -> None:
    """Load a weights file, in which layer4 and the classifier may be or not. Raises WeightsUnavailable."""
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


def _dim(model: Any) -> int:
    """Columns of layer2 and layer3 together."""
    return sum(int(level["num_chs"]) for level in model.feature_info[2:4])
