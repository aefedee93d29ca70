"""`lite`: EfficientNet-Lite0, whose weights come in a package: a trained network where no hub can be reached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backend.base.errors import WeightsUnavailable
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import ExtractorOptions, Precision
from backend.extractors.weights import find_weights, fingerprint, misfit, read_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

NAME = "lite"
PATCH = 16


class LiteFeatures(NetworkFeatures):
    """Stages of a frozen EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946), as LiteTokens joins them.

    A token covers 16×16 pixels. See lite_precision.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """

    reach = 2.5  # the finest stages are averaged over 5 × 8 pixels

    def __init__(self, options: ExtractorOptions) -> None:
        from backend.extractors.tokens import LiteTokens

        model = _trunk(find_weights(NAME, options.weights, options.weights_dir))
        self.tokens = LiteTokens(model)
        joined = "|".join(map(str, (LiteTokens.stages, LiteTokens.windows, LiteTokens.weights, LiteTokens.constant)))
        super().__init__(
            model,
            replace(options, precision=lite_precision(options.precision)),
            name=NAME,
            patch=PATCH,
            dim=self.tokens.dim,
            fingerprint=fingerprint(model, f"{NAME}|{joined}|batch norms|l2"),
            shared=self.tokens.shared().numpy(),
        )

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        from backend.extractors.tokens import TokenNetwork

        cfg = self.model.pretrained_cfg
        return TokenNetwork(self.tokens, cfg["mean"], cfg["std"])


def lite_precision(asked: Precision) -> Precision:
    """What `lite` computes in: with `auto` fp32 everywhere, so that the same image gets the same score."""
    return "fp32" if asked == "auto" else asked


def _trunk(path: Path) -> Any:
    """The network of timm with the weights of `path`, without its head."""
    import timm
    import torch

    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = read_state(path, NAME)
    names = model.state_dict().keys()
    try:
        if state.keys() != names:  # the package has other names for the tensors, and the tensors in timm's order
            state = dict(zip(names, state.values(), strict=True))
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as err:
        raise WeightsUnavailable(model=NAME, reason=misfit(path, err)) from err
    model.conv_head = model.bn2 = model.classifier = torch.nn.Identity()
    return model.to(memory_format=torch.channels_last)
