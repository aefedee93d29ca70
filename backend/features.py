"""From pixels to embeddings: DINOv2 (any timm ViT), and the choice of an extractor."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.base.errors import BackendUnavailable, BundleRefused, InvalidSettings, NotExported, WeightsUnavailable
from backend.base.messages import Fault, Phrase
from backend.extractors.exported import ExportedNetwork
from backend.extractors.lite import LiteFeatures
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.extractors.resnet import ResNetFeatures, is_resnet
from backend.extractors.weights import (
    exported_file,
    find_weights,
    fingerprint,
    load_weights,
    torch_installed,
    unknown_model,
)

if TYPE_CHECKING:
    from torch import nn

    from backend.extractors.exported import Position

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
    if (size, stride) != (1, 1) and not is_resnet(extractor.name):  # a ResNet averages each of its levels
        extractor = Neighbourhood(extractor, size, stride)
    return extractor


def _backbone(options: ExtractorOptions) -> Extractor:
    if options.model_name == "texture":
        from backend.extractors.texture import TextureFeatures

        return TextureFeatures(options.input_size, options.input_edge, options.input_aspect)
    exported = exported_file(options.weights, options.weights_dir)
    if exported is not None:
        return _exported(exported, options)
    if not torch_installed():
        raise WeightsUnavailable(model=options.model_name, reason=Phrase("needs_torch"))
    if options.threads:
        importlib.import_module("torch").set_num_threads(options.threads)
    reference = _network(options)
    if options.runtime == "torch" or reference.device != "cpu":
        return reference
    from backend.extractors.openvino_runtime import with_openvino

    return with_openvino(reference, options)


def torch_network(options: ExtractorOptions) -> NetworkFeatures:
    """The network that `options` name, run by torch on the CPU in fp32: what an export is made from and held against.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
        NotExported: there is no network, or no torch.
    """
    if options.model_name == "texture" or exported_file(options.weights, options.weights_dir) is not None:
        raise NotExported(model=options.model_name, reason=Phrase("no_network"))
    if not torch_installed():
        raise NotExported(model=options.model_name, reason=Phrase("no_export_packages", {"packages": "torch + timm"}))
    options = replace(options, device="cpu", precision="fp32", runtime="torch")
    return _network(options)


def export_extractor(options: ExtractorOptions) -> bytes:
    """The network that `options` name as the bytes of a .bdix. Raises what torch_network and export_bytes do."""
    network = torch_network(options)
    from backend.extractors.export import export_bytes

    return export_bytes(network).data


def _exported(path: Path, options: ExtractorOptions) -> Extractor:
    """The exported extractor in a file. Raises WeightsUnavailable, BackendUnavailable, ExportDisagrees."""
    from backend.extractors.openvino_runtime import openvino_installed, run_exported

    if options.runtime == "torch":
        raise WeightsUnavailable(model=path.name, reason=Phrase("export_without_torch"))
    if not openvino_installed():
        raise BackendUnavailable(option="WEIGHTS", value=path.name, package="openvino")
    try:
        network = ExportedNetwork.read(path, options)
    except BundleRefused as err:
        raise WeightsUnavailable(model=path.name, reason=err.values["reason"]) from err
    except FileNotFoundError as err:
        raise WeightsUnavailable(model=path.name, reason=Phrase("no_such_file", {"path": path})) from err
    except OSError as err:
        reason = Phrase("unreadable_weights", {"file": path.name, "err": err.strerror})
        raise WeightsUnavailable(model=path.name, reason=reason) from err
    return run_exported(network, options)


def _network(options: ExtractorOptions) -> NetworkFeatures:
    if options.model_name == "lite":
        return LiteFeatures(options)
    return ResNetFeatures(options) if is_resnet(options.model_name) else DinoV2Features(options)


def check_options(options: ExtractorOptions) -> None:
    """Look at what can be told of options without the weights.

    Raises:
        InvalidSettings: BLOCKS names a block that the model does not have.
    """
    unasked = not options.blocks or options.model_name in {"lite", "texture"} or is_resnet(options.model_name)
    if unasked or not torch_installed() or exported_file(options.weights, options.weights_dir) is not None:
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


def _is_plain(model: nn.Module) -> bool:
    """Whether a token's position is in its embedding alone, so that a ViT runs over any choice of its tokens."""
    from timm.models.vision_transformer import VisionTransformer

    return type(model) is VisionTransformer


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
        self.leaves_out = _is_plain(model)
        super().__init__(
            model,
            options,
            name=options.model_name,
            patch=int(model.patch_embed.patch_size[0]),
            dim=int(model.embed_dim) * len(self.blocks),
            fingerprint=fingerprint(model, f"{options.model_name}|{self.blocks}|norm|cat|l2"),
        )

    @property
    def way(self) -> dict[str, Any]:
        """See NetworkFeatures."""
        return {"blocks": list(self.blocks)}

    def network_of_any_size(self, height: int, width: int) -> tuple[nn.Module, Position]:
        """See NetworkFeatures: of timm's plain ViTs, whose table of positions is resampled outside of the network."""
        from backend.extractors.exported import Position
        from backend.extractors.tokens import PlacedTokenNetwork, PlacedViTTokens

        model = self.model
        if not _undrawn(self.name) or getattr(model, "pos_embed", None) is None:
            raise NotExported(model=self.name, reason=Phrase("no_position_table"))
        cfg = model.pretrained_cfg
        rows, cols = model.patch_embed.grid_size
        prefix = 0 if model.no_embed_class else int(model.num_prefix_tokens)
        fixed = self._resized(height, width)
        del fixed.pos_embed
        network = PlacedTokenNetwork(PlacedViTTokens(fixed, self.blocks), cfg["mean"], cfg["std"])
        return network, Position(model.pos_embed.cpu().numpy(), prefix, (rows, cols))

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        from backend.extractors.tokens import TokenNetwork, ViTTokens

        cfg = self.model.pretrained_cfg
        return TokenNetwork(ViTTokens(self._resized(height, width), self.blocks), cfg["mean"], cfg["std"])

    def _resized(self, height: int, width: int) -> Any:
        """The model for images of (height, width) px, with the weights shared."""
        shared = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        fixed = copy.deepcopy(self.model, shared)
        fixed.set_input_size((height, width))
        return fixed
