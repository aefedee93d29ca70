"""The torch modules that extractors run: from uint8 pixels to tokens of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from backend.extractors.agreement import alternating


class TokenNetwork(nn.Module):
    """From (B, H, W, 3) uint8 RGB to (B, T, D) float32 unit rows: what a runtime takes as a whole.

    Args:
        body: from a normalised (B, 3, H, W) batch to (B, T, D) tokens.
        mean, std: of the channels, 0–1, as the weights were trained with.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, T, D) float32."""
        batch = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        return functional.normalize(self.body(batch).float(), dim=-1)


class ViTTokens(nn.Module):
    """The patch tokens of some blocks of a timm ViT, each through the final norm, concatenated."""

    def __init__(self, model: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.blocks = list(blocks)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, T, D)."""
        taken = self.model.forward_intermediates(
            batch, indices=self.blocks, norm=True, stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        return torch.cat(taken, dim=-1)


class ResNetTokens(nn.Module):
    """layer2 joined with layer3 (bilinear to layer2's grid) of a timm ResNet.

    Each level is averaged over windows on its own grid before it is resized (Roth et al. 2022, section 3.1, eq. 2).

    Args:
        windows: side of the windows on layer2's and on layer3's grid; odd.
        stride: every stride-th window of every stride-th row of layer2 is taken.
        zeros_outside: what lies outside the image counts as zeros, as in the PatchCore authors' code, so that a patch
            at the border weighs less; False: it does not count.
        level: both levels are brought to unit length before they are joined, so that neither outweighs the other.
        thinned: every n-th token of every n-th row is kept once the levels are joined.
        offset: what is added to the channels, up and down by turns, before their tokens are normalised. Unit rows alone
            lose how strongly a patch responds. Beside a vector that no patch has of its own they keep it, and their
            distances come near those of the responses themselves.
    """

    offset: torch.Tensor

    def __init__(
        self,
        model: Any,
        *,
        windows: tuple[int, int] = (1, 1),
        stride: int = 1,
        zeros_outside: bool = True,
        level: bool = False,
        thinned: int = 1,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.windows, self.stride, self.zeros_outside = windows, stride, zeros_outside
        self.level, self.thinned = level, thinned
        dim = sum(info["num_chs"] for info in model.feature_info[2:4])
        self.register_buffer("offset", torch.from_numpy(offset * alternating(dim)))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, H/8/stride · W/8/stride, D), and of each side one in `thinned`."""
        model = self.model
        stem = model.maxpool(model.act1(model.bn1(model.conv1(batch))))
        layer2 = model.layer2(model.layer1(stem))
        layer3 = self._averaged(model.layer3(layer2), self.windows[1], 1)
        layer2 = self._averaged(layer2, self.windows[0], self.stride)
        layer3 = functional.interpolate(layer3, layer2.shape[-2:], mode="bilinear", align_corners=False)
        if self.level:
            layer2, layer3 = functional.normalize(layer2, dim=1), functional.normalize(layer3, dim=1)
        joined = torch.cat((layer2, layer3), dim=1)
        if self.thinned > 1:
            joined = joined[:, :, :: self.thinned, :: self.thinned]
        return joined.flatten(2).transpose(1, 2) + self.offset

    def _averaged(self, level: torch.Tensor, side: int, stride: int) -> torch.Tensor:
        if side == stride == 1:
            return level
        return functional.avg_pool2d(level, side, stride, side // 2, count_include_pad=self.zeros_outside)


class PlacedViTTokens(ViTTokens):
    """ViTTokens of a ViT that is given the positions of its tokens with each image, and so serves any grid."""

    def forward(self, batch: torch.Tensor, position: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, 3, H, W) normalised and (1, P + T, D) positions -> (B, T, D)."""
        self.model.pos_embed = position
        return super().forward(batch)


class PlacedTokenNetwork(TokenNetwork):
    """TokenNetwork around PlacedViTTokens."""

    def forward(self, pixels: torch.Tensor, position: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, H, W, 3) uint8 and (1, P + T, D) positions -> (B, T, D) float32."""
        batch = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        return functional.normalize(self.body(batch, position).float(), dim=-1)
