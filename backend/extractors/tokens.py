"""The torch modules that extractors run: from uint8 pixels to tokens of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional


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

    def forward(self, pixels: torch.Tensor, *chosen: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, T, D) float32; `chosen`: the numbers of tokens, see ViTTokens."""
        batch = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        return functional.normalize(self.body(batch, *chosen).float(), dim=-1)


class ViTTokens(nn.Module):
    """The patch tokens of some blocks of a timm ViT, each through the final norm, concatenated."""

    def __init__(self, model: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.blocks = list(blocks)

    def forward(self, batch: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, T, D), or (B, K, D) where a plain ViT sees the K patches `numbers` alone."""
        taken = self._taken(batch) if numbers is None else self._taken_of(batch, numbers)
        return torch.cat(taken, dim=-1)

    def _taken(self, batch: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self.model.forward_intermediates(
            batch, indices=self.blocks, norm=True, stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        return found

    def _taken_of(self, batch: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
        """As `_taken`, with the other patches left out once positions are added."""
        model, prefix = self.model, self.model.num_prefix_tokens
        tokens = model._pos_embed(model.patch_embed(batch))
        tokens = torch.cat((tokens[:, :prefix], tokens[:, prefix:].index_select(1, numbers)), dim=1)
        tokens = model.norm_pre(tokens)
        found = []
        for number, block in enumerate(model.blocks[: max(self.blocks) + 1]):
            tokens = block(tokens)
            if number in self.blocks:
                found.append(model.norm(tokens)[:, prefix:])
        return found


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
        self.register_buffer("offset", offset * alternating(dim))

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


class LiteTokens(nn.Module):
    """Stages of timm's EfficientNet-Lite0 on the grid of its stride 16, each of unit length, joined.

    A stage's channels are brought to mean 0 and deviation 1, as its batch norms know them, and averaged over a window
    of the stage's own grid, or of a grid of 8 pixels where its own is finer (Roth et al. 2022, section 3.1, eq. 2).
    Before a stage is brought to unit length a constant joins it: it keeps how strongly the stage responds, which unit
    length alone would lose. The stages have strides of 4, 8, 16, 16 and 32 pixels, so that fine marks tell as well as
    whole shapes; the finest, which knows colour, counts for more.
    """

    stages = (1, 2, 3, 4, 6)
    windows = (5, 5, 5, 5, 3)
    weights = (1.5, 1.0, 1.0, 1.0, 1.0)
    constant = 3.0

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        standardised = [_Standardised(model.blocks[stage]) for stage in self.stages]
        self.standardised = nn.ModuleList(standardised)
        self.channels = [part.mean.numel() for part in standardised]
        self.dim = sum(self.channels) + len(self.channels)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised, sides multiples of 16 -> (B, H/16 · W/16, dim)."""
        grid = batch.shape[-2] // 16, batch.shape[-1] // 16
        found = self.model.bn1(self.model.conv_stem(batch))
        joined: list[torch.Tensor] = []
        for number, stage in enumerate(self.model.blocks):
            found = stage(found)
            if number in self.stages:
                n = len(joined)
                joined.append(self.weights[n] * self._on_grid(self.standardised[n](found), self.windows[n], grid))
        return torch.cat(joined, dim=1).flatten(2).transpose(1, 2)

    def _on_grid(self, stage: torch.Tensor, window: int, grid: tuple[int, int]) -> torch.Tensor:
        """(B, C, h, w) -> (B, C + 1, *grid), of unit length at each place."""
        if stage.shape[-1] == 4 * grid[1]:
            stage = functional.avg_pool2d(stage, 2)
        stage = functional.avg_pool2d(stage, window, 1, window // 2)
        size = tuple(stage.shape[-2:])
        if size == (2 * grid[0], 2 * grid[1]):
            stage = functional.avg_pool2d(stage, 2)
        elif size != grid:
            stage = functional.interpolate(stage, grid, mode="bilinear", align_corners=False)
        constant = torch.full_like(stage[:, :1], self.constant)
        return functional.normalize(torch.cat((stage, constant), dim=1), dim=1)

    def shared(self) -> torch.Tensor:
        """(dim,) unit: the direction of the constants, which every token has a large part in."""
        parts = [torch.tensor([0.0] * n + [w]) for n, w in zip(self.channels, self.weights, strict=True)]
        return functional.normalize(torch.cat(parts), dim=0)


class _Standardised(nn.Module):
    """Brings the channels of a stage to mean 0 and deviation 1 / √C, so that a place's length does not depend on C.

    A block ends in a batch norm, whose bias and weight are mean and deviation of its channels over the images that the
    network was trained with. The blocks of a stage are added up, and taken to vary independently.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    @torch.no_grad()
    def __init__(self, stage: Any) -> None:
        super().__init__()
        variance = torch.stack([block.bn3.weight**2 for block in stage]).sum(0)
        self.register_buffer("mean", torch.stack([block.bn3.bias for block in stage]).sum(0)[:, None, None])
        self.register_buffer("scale", (variance * len(variance)).rsqrt()[:, None, None])

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> the same shape."""
        return (found - self.mean) * self.scale


def alternating(dim: int) -> torch.Tensor:
    """(dim,) +1, −1, +1, …: a direction that responses, none of them negative, have next to no part in."""
    return 1.0 - 2.0 * (torch.arange(dim) % 2)
