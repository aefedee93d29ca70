"""From pixels to embeddings: DINOv2 (any timm ViT), and the choice of an extractor."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backend.base.errors import InvalidSettings, WeightsUnavailable
from backend.base.messages import Fault
from backend.extractors.lite import LiteFeatures
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.extractors.resnet import ResNetFeatures, is_resnet
from backend.extractors.weights import find_weights, fingerprint, load_weights, unknown_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DinoV2Features", "build_extractor", "check_options"]


def build_extractor(options: ExtractorOptions) -> Extractor:
    """The extractor that `options` ask for.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
        BackendUnavailable: `runtime` is openvino, and it is not installed.
        InvalidSettings: see check_options.
    """
    from backend.extractors.neighbourhood import Neighbourhood, Tiled

    extractor = _backbone(options)
    if options.tiles > 1:
        extractor = Tiled(extractor, options.tiles, options.tile_overlap)
    size, stride = options.patch_size or 1, options.stride
    if (size, stride) != (1, 1) and not is_resnet(options.model_name):  # a ResNet averages each of its levels
        extractor = Neighbourhood(extractor, size, stride)
    return extractor


def _backbone(options: ExtractorOptions) -> Extractor:
    if options.model_name == "texture":
        from backend.extractors.texture import TextureFeatures

        return TextureFeatures(options.input_size, options.input_edge, options.input_aspect)
    if options.threads:
        importlib.import_module("torch").set_num_threads(options.threads)
    reference = _network(options)
    if options.runtime == "torch" or reference.device != "cpu":
        return reference
    from backend.extractors.openvino_runtime import with_openvino

    return with_openvino(reference, options)


def _network(options: ExtractorOptions) -> NetworkFeatures:
    if options.model_name == "lite":
        return LiteFeatures(options)
    return ResNetFeatures(options) if is_resnet(options.model_name) else DinoV2Features(options)


def check_options(options: ExtractorOptions) -> None:
    """Look at what can be told of options without the weights.

    Raises:
        InvalidSettings: BLOCKS names a block that the model does not have.
    """
    if not options.blocks or options.model_name in {"lite", "texture"} or is_resnet(options.model_name):
        return
    import timm
    import torch

    if timm.is_model(options.model_name):
        with torch.device("meta"):
            model: Any = timm.create_model(options.model_name, pretrained=False, **_undrawn(options.model_name))
        _blocks_of(options.blocks, len(model.blocks))


def _blocks_of(given: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The numbers of blocks of a network of so many, negative ones counted from the last. Raises InvalidSettings."""
    for block in given:
        if not -depth <= block < depth:
            limits = {"block": block, "least": -depth, "most": depth - 1}
            raise InvalidSettings(reason=[Fault("BLOCKS", "no_such_block", limits)])
    return tuple(block % depth for block in given)


def _undrawn(model_name: str) -> dict[str, Any]:
    """Keeps timm from drawing a ViT's weights at random: that takes a second, and load_weights replaces all of them."""
    import timm

    plain_vit = timm.model_entrypoint(model_name).__module__ == "timm.models.vision_transformer"
    return {"weight_init": "skip"} if plain_vit else {}


class DinoV2Features(NetworkFeatures):
    """Patch tokens of a frozen ViT (Oquab et al. 2023, DINOv2), of two blocks, each through the final norm.

    The tokens of blocks 9 and 11 (of 12; the last and the one three quarters in for other depths) are concatenated and
    L2-normalised. Any grid works: timm resamples the position embeddings, once per grid.

    Args:
        options: the options that it follows; neighbourhoods, tiles and the runtime are build_extractor's to add.
        given: options by name, in place of those in `options`: DinoV2Features(input_size=448, device="cpu").

    Raises:
        WeightsUnavailable, InvalidSettings: as build_extractor.
        TypeError: there is no option of that name.
    """

    def __init__(self, options: ExtractorOptions | None = None, **given: Any) -> None:
        import timm

        options = replace(options or ExtractorOptions(), **given)
        if not timm.is_model(options.model_name):
            raise WeightsUnavailable(model=options.model_name, reason=unknown_model())
        source = find_weights(options.model_name, options.weights, options.weights_dir)
        model: Any = timm.create_model(
            options.model_name, pretrained=False, num_classes=0, **_undrawn(options.model_name)
        )
        load_weights(model, source, options.model_name)
        depth = len(model.blocks)
        self.blocks = _blocks_of(options.blocks, depth) or (3 * depth // 4, depth - 1)
        super().__init__(
            model,
            options,
            name=options.model_name,
            patch=int(model.patch_embed.patch_size[0]),
            dim=int(model.embed_dim) * len(self.blocks),
            fingerprint=fingerprint(model, f"{options.model_name}|{self.blocks}|norm|cat|l2"),
        )

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        from backend.extractors.tokens import TokenNetwork, ViTTokens

        cfg = self.model.pretrained_cfg
        shared = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        fixed = copy.deepcopy(self.model, shared)
        fixed.set_input_size((height, width))
        return TokenNetwork(ViTTokens(fixed, self.blocks), cfg["mean"], cfg["std"])
