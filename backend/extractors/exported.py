"""An exported extractor (.bdix): a network that OpenVINO runs without torch, and what is known of it.

Its parts, beside the manifest:

network.xml, network.bin  OpenVINO's model of the network, from pixels of any size to unit rows
position.npy              of a ViT, (1, P + R·C, D) float32: its table of positions, which the model takes as an input
shared.npy                see NetworkFeatures.shared; of the networks that have one
picture.npy, tokens.npy   a reference picture (H, W, 3) uint8, and the tokens (1, T, D) float32 that torch gave for it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.bundle import Bundle, read_bundle
from backend.base.messages import Phrase
from backend.extractors.protocol import RGB, Aspect, Edge, ExtractorOptions, Rows

EXPORT_GAP = 1e-3
_FIELDS = {
    "model_name": str, "fingerprint": str, "patch": int, "dim": int, "reach": float, "way": dict,
    "mean": list, "std": list,
}  # fmt: skip
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Position:
    """A ViT's table of positions, which is resampled to the grid of each image.

    Attributes:
        table: (1, prefix + R·C, D) float32.
        prefix: rows before those of the grid, such as the class token's.
        grid: R rows and C columns.
    """

    table: NDArray[np.float32]
    prefix: int
    grid: tuple[int, int]

    def resampled(self, rows: int, cols: int) -> NDArray[np.float32]:
        """(1, prefix + rows·cols, D): bicubic with antialiasing, as timm does it."""
        if (rows, cols) == self.grid:
            return self.table
        before, table = self.table[0, : self.prefix], self.table[0, self.prefix :]
        cells = table.reshape(*self.grid, -1).astype(np.float64)
        down, across = _bicubic(self.grid[0], rows), _bicubic(self.grid[1], cols)
        resized = np.einsum("rh,hwd->rwd", down, cells)
        resized = np.einsum("cw,rwd->rcd", across, resized).reshape(rows * cols, -1)
        return np.concatenate([before, resized.astype(np.float32)])[None]


def _bicubic(size: int, wanted: int) -> NDArray[np.float64]:
    """(wanted, size) weights that resample a line (Keys 1981, a = −0.5), wider where the line becomes shorter."""
    scale = size / wanted
    centres = scale * (np.arange(wanted) + 0.5)
    x = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights: NDArray[np.float64] = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


@dataclass(frozen=True)
class ExportedNetwork:
    """What a .bdix holds, ready to be run by `openvino_runtime.run_exported`.

    Attributes:
        name, fingerprint, reach, dim, patch: those of the extractor that was exported.
        input_size, input_edge, input_aspect: see ExtractorOptions.
        way: the settings that decide how tokens are taken from the network, each with its value.
        picture: (H, W, 3) uint8.
        tokens: (1, T, dim) float32 of `picture`.
        shared: see NetworkFeatures.
        position: of a ViT.
        network: OpenVINO's model.
    """

    name: str
    fingerprint: str
    reach: float
    dim: int
    patch: int
    input_size: int
    input_edge: Edge
    input_aspect: Aspect
    way: dict[str, Any]
    picture: RGB
    tokens: Rows
    shared: Rows | None
    position: Position | None
    network: Any = field(repr=False)

    @classmethod
    def read(cls, path: Path, options: ExtractorOptions) -> ExportedNetwork:
        """The network in a .bdix, for the input size of `options`.

        Raises:
            BundleRefused: it is damaged, or `options` ask for another model or way than it was exported with.
            OSError: it cannot be read.
        """
        return cls.of(read_bundle(path.read_bytes(), "bdix", path.name), options)

    @classmethod
    def of(cls, bundle: Bundle, options: ExtractorOptions) -> ExportedNetwork:
        """As `read`, of a bundle that was read."""
        _check_fields(bundle)
        about = bundle.about
        network, position = _read_network(bundle), _read_position(bundle)
        picture, tokens = bundle.array("picture.npy"), bundle.array("tokens.npy")
        shared = bundle.array("shared.npy") if "shared.npy" in bundle.parts else None
        if shared is not None and (shared.dtype != np.float32 or shared.shape != (about["dim"],)):
            raise bundle.refused(Phrase("part_not_valid", {"part": "shared.npy"}))
        rows, cols = (side // about["patch"] for side in picture.shape[:2])
        fits = (
            picture.dtype == np.uint8
            and picture.shape == (rows * about["patch"], cols * about["patch"], 3)
            and tokens.dtype == np.float32
            and tokens.shape == (1, rows * cols, about["dim"])
            and len(network.inputs) == (1 if position is None else 2)
        )
        if not fits or rows * cols == 0:
            raise bundle.refused(Phrase("part_not_valid", {"part": "picture.npy"}))
        found = cls(
            name=about["model_name"],
            fingerprint=about["fingerprint"],
            reach=about["reach"],
            dim=about["dim"],
            patch=about["patch"],
            input_size=options.input_size,
            input_edge=options.input_edge,
            input_aspect=options.input_aspect,
            way=about["way"],
            picture=picture,
            tokens=tokens,
            shared=shared,
            position=position,
            network=network,
        )
        _check_options(bundle, found, options)
        return found

    @property
    def leaves_out(self) -> bool:
        """Whether it is a ViT whose positions are added to its tokens, of which some can be left out from there on."""
        return self.position is not None and _added(self.network.inputs[1]) is not None

    def model(self, height: int, width: int, *, part: bool = False) -> Any:
        """OpenVINO's model for one (height, width) px image; `part`: see openvino_runtime.model_of."""
        from openvino import PartialShape, op

        model = self.network.clone()
        chosen = _choosing(model, self.position.prefix) if part and self.position else []
        if self.position is not None:
            table = self.position.resampled(height // self.patch, width // self.patch)
            given = model.inputs[1].get_node()
            given.output(0).replace(op.Constant(table).output(0))
            model.remove_parameter(given)
        model.add_parameters(chosen)
        shapes = [PartialShape([1, height, width, 3]), PartialShape([-1])]
        model.reshape(dict(zip(model.inputs, shapes, strict=False)))
        return model


def _added(position: Any) -> Any:
    """The sum of tokens and the positions that an input of a network gives; None where they are not just added."""
    (user, *others) = position.get_target_inputs() or [None]
    plain = user is not None and not others and user.get_node().get_type_name() == "Add"
    return user.get_node().output(0) if plain else None


def _choosing(model: Any, prefix: int) -> list[Any]:
    """Let a ViT run over some patches, once positions are added; the parameter for their numbers, not yet in `model`.

    `prefix`: tokens before those of the patches there, which stay.
    """
    from openvino import opset13 as ops

    tokens = _added(model.inputs[1])
    users = tokens.get_target_inputs()
    numbers = ops.parameter([-1], np.int64)
    rows = ops.concat([ops.constant(np.arange(prefix)), ops.add(numbers, ops.constant(np.int64(prefix)))], 0)
    chosen = ops.gather(tokens, rows, ops.constant(np.int64(1)))
    for user in users:
        user.replace_source_output(chosen.output(0))
    return [numbers]


def _check_fields(bundle: Bundle) -> None:
    about = bundle.about
    known = all(type(about.get(name)) is kind for name, kind in _FIELDS.items())
    wanted = {"network.xml", "network.bin", "picture.npy", "tokens.npy"}
    if not known or not _can_be_meant(about):
        raise bundle.refused(Phrase("part_not_valid", {"part": "manifest.json"}))
    missing = sorted(
        (wanted | ({"position.npy"} if "position" in about else set())) ^ (bundle.parts.keys() - {"shared.npy"})
    )
    if missing:
        raise bundle.refused(Phrase("part_not_listed", {"part": missing[0]}))


def _can_be_meant(about: dict[str, Any]) -> bool:
    """Whether fields of the right types hold what an extractor can have."""
    named = all(0 < len(about[name]) <= _LONGEST_NAME for name in ("model_name", "fingerprint"))
    sized = 1 <= about["patch"] <= 1024 and 1 <= about["dim"] <= 1 << 16 and 0 < about["reach"] <= 1024
    colours = all(len(about[name]) == 3 and all(type(one) is float for one in about[name]) for name in ("mean", "std"))
    listed = [one for value in about["way"].values() for one in (value if isinstance(value, list) else [value])]
    return named and sized and colours and not any(isinstance(one, dict | list) for one in listed)


def _read_network(bundle: Bundle) -> Any:
    import openvino

    weights = np.frombuffer(bundle.parts["network.bin"], np.uint8)
    try:
        return openvino.Core().read_model(bundle.parts["network.xml"], openvino.Tensor(weights.copy()))
    except (RuntimeError, TypeError, ValueError) as err:
        raise bundle.refused(Phrase("part_not_valid", {"part": "network.xml"})) from err


def _read_position(bundle: Bundle) -> Position | None:
    about = bundle.about.get("position")
    if about is None:
        return None
    table = bundle.array("position.npy")
    try:
        prefix, (rows, cols) = int(about["prefix"]), map(int, about["grid"])
        fits = min(rows, cols) > 0 <= prefix and table.ndim == 3 and table.shape[:2] == (1, prefix + rows * cols)
    except (TypeError, KeyError, ValueError):
        fits = False
    if not fits or table.dtype != np.float32:
        raise bundle.refused(Phrase("part_not_valid", {"part": "position.npy"}))
    return Position(table, prefix, (rows, cols))


def _check_options(bundle: Bundle, found: ExportedNetwork, options: ExtractorOptions) -> None:
    """Raises BundleRefused when a setting that was changed from its default asks for another network."""
    default = ExtractorOptions()
    for name, own in {"model_name": found.name, **found.way}.items():
        if name not in default.__dict__:
            raise bundle.refused(Phrase("part_not_valid", {"part": "manifest.json"}))
        asked, usual = getattr(options, name), getattr(default, name)
        taken = tuple(own) if isinstance(own, list) else own
        if asked not in {taken, usual}:
            values = {"option": name.upper(), "own": taken, "value": asked}
            raise bundle.refused(Phrase("other_option", values))


def largest_gap(rows: Rows, reference: Rows) -> float:
    """The largest difference between two arrays of tokens; infinite where their shapes differ, or a number is none."""
    if rows.shape != reference.shape or not np.isfinite(rows).all():
        return float("inf")
    return float(np.abs(rows - reference).max())
