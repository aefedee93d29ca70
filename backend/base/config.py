"""Settings: the only reader of the environment, of `.env` and of `backend/config.yaml`.

A setting NAME is looked up as BDI_NAME, then NAME, then in `.env` (both spellings), then in `backend/config.yaml`;
keyword arguments given in code come before all of them. Other spellings of a name follow it, with BDI_ and without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    AliasGenerator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from backend.base.errors import InvalidSettings
from backend.base.messages import Fault, Notice, Phrase, faults_of
from backend.base.presets import Preset, preset_for

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_YAML = PROJECT_ROOT / "backend" / "config.yaml"

_NO = {"0", "false", "f", "no", "n", "off"}

_NOT_WITH_AREA = {"score_map": "roi", "patchcore_reweight": 0}

OTHER_SPELLINGS = {
    "coreset_rate": ["PATCHCORE_CORESET_RATIO"],
    "max_batch": ["PATCHCORE_BATCH_SIZE"],
}

# Settings of earlier releases, with the kind of fault that tells whoever still sets one what became of it.
GONE = {"KNN_INDEX": "searched_exactly", "PATCHCORE_MEMORIES": "one_memory"}


def _split(value: Any) -> Any:
    if isinstance(value, str):
        value = "" if value.strip().lower() == "none" else value
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    return (str(value),) if isinstance(value, int) else value


def _auto_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in {"auto", "none", ""} else value


def _none_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in {"none", ""} else value


def _names(field: str) -> list[str]:
    plain = [field.upper(), *OTHER_SPELLINGS.get(field, [])]
    return [field, *(f"BDI_{name}" for name in plain), *plain]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _fault(kind: str) -> PydanticCustomError:
    """A fault of a setting that pydantic has no type for; its words are with those of pydantic's own types."""
    return PydanticCustomError(kind, kind)


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
AutoInt = Annotated[int | None, BeforeValidator(_auto_is_none)]
PixelBits = Annotated[Literal[8, 10, 12, 14, 16] | None, BeforeValidator(_whole), BeforeValidator(_auto_is_none)]
OptionalFloat = Annotated[float | None, BeforeValidator(_auto_is_none)]
OptionalText = Annotated[str | None, BeforeValidator(_auto_is_none)]
OptionalFolder = Annotated[Path | None, BeforeValidator(_auto_is_none)]
OptionalUrl = Annotated[str | None, BeforeValidator(_none_is_none)]
Folder = Path


class Settings(BaseSettings):
    """Every setting of the service, with its default. Relative folders are relative to the project's root.

    Raises InvalidSettings from `load_settings`; pydantic's ValidationError when built directly.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda field: AliasChoices(*_names(field)[1:])),
        env_file=PROJECT_ROOT / ".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        yaml_file=CONFIG_YAML,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; another one needs API_KEYS or ALLOW_INSECURE.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on (0: any free one).")
    models_dir: Folder = Field(Path("models"), description="Folder of the fitted models.")
    datasets_dir: Folder = Field(Path("datasets"), description="Folder of the stored samples.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the extractor runs; auto: CUDA if present."
    )
    patchcore_use_gpu: bool | None = Field(
        None, description="Older spelling of DEVICE: false means cpu, true means auto."
    )
    model_name: str = Field(
        "vit_small_patch14_dinov2.lvd142m",
        min_length=1,
        description="Extractor: any timm ViT, `resnet18`, `lite` (comes with the packages) or `texture` (no weights).",
    )
    weights: str = Field(
        "auto",
        description=(
            "`auto`: the folder weights/, then timm's hub name; or a .safetensors/.pth file or folder; or a .bdix "
            "file, an exported extractor, which needs no torch. Without torch, `auto` is the only .bdix in weights/."
        ),
    )
    require_pretrained: bool = Field(False, description="Refuse to start rather than fall back to `lite` or `texture`.")
    preset: Preset = Field(
        "none", description="Settings taken together: reference, anomalydino, patchcore, recommended; single ones win."
    )
    input_size: int = Field(
        448,
        ge=56,
        le=2048,
        description="The ROI is resized to about INPUT_SIZE² pixels, each side a multiple of the patch (450: 448).",
    )
    input_edge: Literal["area", "smaller"] = Field(
        "area", description="Whether INPUT_SIZE is the root of the area or the ROI's smaller edge."
    )
    input_aspect: Literal["keep", "square"] = Field(
        "keep", description="`square` brings every ROI to INPUT_SIZE², for crops that differ in proportion."
    )
    blocks: Names = Field((), description="ViT blocks whose tokens are joined, as 9,11; -1: the last; empty: 9, 11.")
    tiles: int = Field(1, ge=1, le=8, description="Tiles per side that an ROI is seen in; more find smaller defects.")
    tile_overlap: float = Field(0.25, ge=0, le=0.9, description="Share of a tile that its neighbour sees too.")
    patchcore_patch_size: AutoInt = Field(
        None, ge=1, le=15, description="Tokens are averaged over N×N neighbours, N odd (auto: 3 for ResNets, else 1)."
    )
    patchcore_stride: int = Field(1, ge=1, le=8, description="Keep every N-th neighbourhood along each side.")
    resnet_offset: float = Field(
        0.8, ge=0, le=100, description="Added to ResNet channels, so that unit rows keep how strongly a patch responds."
    )
    runtime: Literal["auto", "torch", "openvino"] = Field("auto", description="Who runs the network.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Arithmetic of the network.")
    threads: AutoInt = Field(None, ge=1, description="Threads of the extractor (auto: all cores).")
    coreset_rate: float = Field(0.02, gt=0, le=1, description="Share of the embeddings kept in the memory.")
    max_coreset: int = Field(25_600, ge=1, description="Rows of a memory at most.")
    knn_backend: Literal["auto", "faiss", "sklearn"] = Field("auto", description="Who searches the memory.")
    patchcore_distance: Literal["l2", "cosine", "mahalanobis"] = Field(
        "l2", description="Distance of a patch to the memory; mahalanobis: whitened by the good parts of the fit."
    )
    foreground_mask: Literal["none", "pca"] = Field(
        "none", description="Leave out background tokens, told by the good tokens' first principal component."
    )
    part_alone: bool = Field(
        False,
        description=(
            "1: where all images of a fit have a shape, a ViT runs over the tokens that touch it and leaves the others "
            "out, and so it does in inspections with that model; 0: over the whole ROI."
        ),
    )
    memory_dtype: Literal["float32", "float16", "int8"] = Field(
        "float32", description="How memories are kept, on disk and in RAM; int8: each column in 256 steps."
    )
    patchcore_faiss_fp16: bool = Field(False, description="Older spelling of MEMORY_DTYPE=float16.")
    patchcore_knn_k: int = Field(1, ge=1, le=100, description="Neighbours whose distances are averaged.")
    patchcore_density_k: int = Field(
        0,
        ge=0,
        le=100,
        description="Distances are divided by how far the nearest row is from N rows of other images; 0: as they are.",
    )
    seed: int = Field(0, ge=0, description="Seed of the coreset's first centre.")
    score_percentile: float = Field(99, gt=0, le=100, description="Percentile of the heatmap that is the score.")
    score_method: Literal["percentile", "max", "top_mean", "power_mean", "area"] = Field(
        "percentile", description="How a heatmap is scored; area: the level at which a region of some mm² lights up."
    )
    score_area_mm2: OptionalFloat = Field(
        None, ge=0, le=1e12, allow_inf_nan=False, description="Region that area scores by, mm² (auto: area_mm2_thr)."
    )
    score_map: Literal["roi", "tokens"] = Field(
        "roi", description="Where the score is taken: the blurred heatmap of the ROI, or the token grid before it."
    )
    score_top_share: float = Field(0.01, gt=0, le=1, description="Share of the values that top_mean averages.")
    score_power: float = Field(
        32,
        ge=1,
        le=1000,
        description="Power of power_mean: 1 is the plain mean; the larger, the nearer the maximum.",
    )
    patchcore_reweight: int = Field(
        0, ge=0, le=100, description="Neighbours of the re-weighted score (PatchCore, eq. 7); 0: not weighted."
    )
    token_blur: float = Field(0.0, ge=0, le=20, description="Gaussian blur of the token grid, in tokens, before that.")
    blur_sigma: float = Field(1.0, ge=0, le=100, description="Gaussian blur of the heatmap, in ROI pixels.")
    area_mm2_thr: float = Field(1.0, ge=0, description="Regions smaller than this (mm²) are dropped.")
    threshold_margin: float = Field(0.0, ge=0, le=10, description="Added to the OK percentile when there is no NG.")
    heatmap_scale: Literal["relative", "absolute", "color", "none"] = Field("relative", description="Default heatmap.")
    max_upload_mb: float = Field(64, gt=0, description="Size of one uploaded file at most.")
    max_request_mb: float = Field(2048, gt=0, description="Size of one request at most.")
    max_files: int = Field(1000, ge=1, description="Files in one request at most.")
    max_image_mp: float = Field(100, gt=0, description="Megapixels of one image at most, read from its header.")
    pixel_bits: PixelBits = Field(
        None,
        description=(
            "Significant bits of 16-bit images whose header does not say it (8, 10, 12, 14, 16; auto: 12 where no "
            "value reaches 4096, else 16)."
        ),
    )
    jpeg_scaled: bool = Field(
        True,
        description=(
            "Fits decode a JPEG at 1/2, 1/4 or 1/8 where that leaves several times what the network sees, and "
            "inspections with their models do too; 0: whole."
        ),
    )
    max_queue: int = Field(64, ge=1, description="Requests that may wait for the extractor; more get a 503.")
    max_batch: AutoInt = Field(
        None, ge=1, le=1024, description="Images per forward pass (auto: 1 on a CPU, 32 on CUDA)."
    )
    cache_mb: float = Field(1024, gt=0, description="Memory for loaded models.")
    fit_memory_mb: float = Field(4096, gt=0, description="Memory for the embeddings of one fit.")
    fit_wait_s: float = Field(600, ge=0, description="How long a fit waits for another one of the same ROI.")
    store_samples: bool = Field(True, description="Keep the images that /fit_ok and /send_ng get as samples.")
    datasets_max_gb: float = Field(50, gt=0, description="Size of all samples at most; more are refused.")
    min_ok_samples: int = Field(3, ge=1, description="OK samples that a fit with use_dataset needs at least.")
    results_db: OptionalUrl = Field(
        "sqlite:///data/inspections.db",
        description="Where every verdict is recorded: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME, or none.",
    )
    results_required: bool = Field(False, description="A verdict that cannot be recorded is a 503, not a warning.")
    results_sync: Literal["normal", "full"] = Field(
        "normal", description="Whether a recorded verdict outlives the process, or (full) a loss of power too."
    )
    drift_parts: int = Field(
        100,
        ge=0,
        description="Good parts after a fit that the limits of its drift are learnt from; 0: none is watched.",
    )
    results_days: float = Field(0, ge=0, le=36_500, description="Days that recorded verdicts are kept; 0: for ever.")
    keep_images: str = Field(
        "ng,near,1/100",
        description="Recorded images: NG, within 5 % of the threshold, one OK in a hundred; or all, none.",
    )
    images_max_gb: float = Field(20, ge=0, le=1_000_000, description="Size of them; the oldest unreviewed OK go first.")
    images_dir: OptionalFolder = Field(
        None, description="Their folder (auto: beside an SQLite file, else data/images)."
    )
    trash_days: float = Field(30, ge=0, description="Days that a deleted model stays in MODELS_DIR/.trash.")
    model_versions: int = Field(
        5, ge=0, le=1000, description="Versions of a model that are kept when it is replaced; 0: none."
    )
    versions_max_gb: float = Field(10, ge=0, description="Size of the versions of all models; the oldest go first.")
    golden_blocks: bool = Field(
        False,
        description="Refuse changes that cost a golden sample its verdict; stop verdicts where one lost it.",
    )
    rebuild_on_start: bool = Field(False, description="Rebuild lost memories from the samples when starting.")
    augment_rotation_deg: float = Field(0, ge=0, le=45, description="Fit also on a view turned by up to ± this.")
    augment_jitter: float = Field(0, ge=0, le=0.5, description="Fit also on a view with light and colour ± this share.")
    debug_heatmaps: bool = Field(False, description="Write each heatmap and its numbers to DEBUG_DIR.")
    debug_dir: Folder = Field(Path("data/debug"), description="Folder of DEBUG_HEATMAPS.")
    debug_max_files: int = Field(500, ge=1, description="Heatmaps kept in DEBUG_DIR; the oldest go.")
    api_keys: Names = Field((), description="Keys that may do everything, plain or sha256:<hex>, separated by commas.")
    api_keys_read: Names = Field((), description="Keys that may inspect and read, and change nothing.")
    rate_limit: OptionalText = Field(None, description="Requests per client, such as 600/minute; none: no limit.")
    body_timeout_s: float = Field(30, gt=0, description="A body that stalls for this long is refused (408).")
    request_timeout_s: float = Field(120, gt=0, description="An inspection that takes longer is given up (503).")
    min_free_mb: float = Field(256, ge=0, description="Disk space that fits and uploads leave free (507).")
    read_only: bool = Field(False, description="A replica: it serves the models folder and never writes to it.")
    prometheus_multiproc_dir: Path | None = Field(None, description="Folder in which workers share their metrics.")
    allow_insecure: bool = Field(False, description="Serve other machines without API_KEYS.")
    cors_origins: Names = Field((), description="Origins whose pages may call the service, separated by commas.")
    contract_only: bool = Field(False, description="Only the four contract routes and /docs.")
    artifacts_dir: Folder = Field(Path("models/patchcore"), description="ResNet18 API: folder of its memory bank.")
    static_dir: Folder = Field(Path("static"), description="ResNet18 API: folder that /static serves.")
    overlays_subdir: str = Field(
        "overlays",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="ResNet18 API: folder of its pictures inside STATIC_DIR.",
    )
    max_overlays: int = Field(200, ge=1, description="ResNet18 API: predictions whose pictures are kept.")
    threshold: OptionalFloat = Field(
        None, ge=0, allow_inf_nan=False, description="ResNet18 API: threshold (auto: the bank's config.json, or 0.35)."
    )
    img_size: int = Field(256, ge=32, le=2048, description="ResNet18 API: side that images are resized to.")
    knn_k: int = Field(3, ge=1, le=100, description="ResNet18 API: neighbours whose distances are averaged.")
    patch_stride: int = Field(1, ge=1, le=16, description="ResNet18 API: every n-th row and column of patches is used.")
    save_vis: bool = Field(True, description="ResNet18 API: write overlay, heat and mask pictures.")
    area_min: float = Field(200, ge=0, description="ResNet18 API: smallest polygon, in pixels of the resized image.")
    ignore_border_pct: float = Field(0, ge=0, le=100, description="ResNet18 API: share of each edge left out, in %.")
    roi_path: OptionalText = Field(None, description="ResNet18 API: mask picture, white where the score counts.")
    resnet_weights: str = Field(
        "auto", description="ResNet18 API: as WEIGHTS, for timm's `resnet18.tv_in1k` up to layer3."
    )
    expose_traces: bool = Field(False, description="Put tracebacks of 5xx into the answers of any client.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log lines.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of the sources: keyword arguments, environment, `.env`, `config.yaml`."""
        return init_settings, env_settings, dotenv_settings, _YamlNames(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write(cls, value: Any, info: ValidationInfo) -> Any:
        """Without spaces around it, and a choice in whatever case."""
        if not isinstance(value, str):
            return value
        value = value.strip()
        choices = get_args(cls.model_fields[str(info.field_name)].annotation)
        return next((c for c in choices if isinstance(c, str) and c.lower() == value.lower()), value)

    @field_validator(
        "models_dir", "datasets_dir", "artifacts_dir", "static_dir", "debug_dir", "images_dir", mode="after"
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None or value.is_absolute() else PROJECT_ROOT / value

    @field_validator("keep_images", mode="after")
    @classmethod
    def _policy(cls, value: str) -> str:
        words = [word.strip().lower() for word in value.split(",") if word.strip()]
        listed = [word for word in words if word in {"ng", "near"} or re.fullmatch(r"1/[1-9]\d{0,8}", word)]
        shares = sum(word.startswith("1/") for word in listed)
        if words not in (["all"], ["none"]) and (not words or listed != words or shares > 1):
            raise _fault("keep_images")
        return ",".join(words)

    @field_validator("api_keys", "api_keys_read", mode="after")
    @classmethod
    def _hashed_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hashes = [key[len("sha256:") :] for key in value if key.startswith("sha256:")]
        if not all(re.fullmatch("[0-9a-fA-F]{64}", digest) for digest in hashes):
            raise _fault("hashed_key")
        return value

    @field_validator("rate_limit", mode="after")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d*\s*(/|per )\s*(second|minute|hour|day)", value):
            raise _fault("rate")
        return value

    @field_validator("blocks", mode="after")
    @classmethod
    def _block_numbers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.removeprefix("-").isdecimal() for part in value):
            raise _fault("block_numbers")
        return value

    @field_validator("score_map", "patchcore_reweight", mode="after")
    @classmethod
    def _left_alone_by_area(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("score_method") == "area" and value != _NOT_WITH_AREA[str(info.field_name)]:
            raise _fault("not_with_area")
        return value

    @field_validator("patchcore_patch_size", mode="after")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise _fault("even")
        return value

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: dict[str, Any]) -> dict[str, Any]:
        chosen = next((data[n] for n in _names("preset") if n in data), "none")
        default = cls.model_fields["model_name"].default
        model = next((data[n] for n in _names("model_name") if n in data), default)
        filled = preset_for(str(chosen).strip().lower(), str(model).strip())
        method = next((data[n] for n in _names("score_method") if n in data), "")
        if str(method).strip().lower() == "area":  # what a preset scores where does not hold for another method
            filled = {name: value for name, value in filled.items() if name not in _NOT_WITH_AREA}
        return {**{k: v for k, v in filled.items() if not any(n in data for n in _names(k))}, **data}

    @model_validator(mode="before")
    @classmethod
    def _gpu_switch(cls, data: dict[str, Any]) -> dict[str, Any]:
        switch = next((data[n] for n in _names("patchcore_use_gpu") if n in data), None)
        if switch is not None and not any(n in data for n in _names("device")):
            data = {**data, "device": "cpu" if str(switch).strip().lower() in _NO else "auto"}
        return data

    @model_validator(mode="before")
    @classmethod
    def _half_switch(cls, data: dict[str, Any]) -> dict[str, Any]:
        switch = next((data[n] for n in _names("patchcore_faiss_fp16") if n in data), None)
        if switch is not None and not any(n in data for n in _names("memory_dtype")):
            data = {**data, "memory_dtype": "float32" if str(switch).strip().lower() in _NO else "float16"}
        return data


class _YamlNames(YamlConfigSettingsSource):
    """`config.yaml` with the same names as the environment, in any case."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        try:
            super().__init__(settings_cls)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as err:
            why = {"file": CONFIG_YAML.name, "why": " ".join(str(err).split())}
            raise InvalidSettings(reason=Phrase("yaml_not_a_table", why)) from err
        given = {str(k).lower(): v for k, v in self.yaml_data.items() if v is not None}
        fields = {}
        for field in settings_cls.model_fields:
            said = [given[name.lower()] for name in _names(field)[1:] if name.lower() in given]
            fields.update({field: said[0]} if said else {})
        InitSettingsSource.__init__(self, settings_cls, fields)


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and the files, `overrides` first.

    Raises:
        InvalidSettings: names the settings that are not valid and why.
    """
    try:
        settings = Settings(**overrides)
    except UnicodeDecodeError as err:
        raise InvalidSettings(reason=Phrase("env_not_utf8", {"why": err})) from err
    except ValidationError as err:
        faults = faults_of(err.errors(), lambda loc: _as_written(loc, overrides))
        raise InvalidSettings(reason=faults) from err
    if gone := _still_set(overrides):
        raise InvalidSettings(reason=gone)
    return settings


def _still_set(overrides: Mapping[str, Any]) -> list[Fault]:
    """A fault for each setting of GONE that has a value in code, in the environment or in the files."""
    named = {
        name.upper().removeprefix("BDI_"): name
        for source in (*reversed(_sources()), overrides)  # of several places the nearest names it
        for name, value in source.items()
        if value not in ("", None)
    }
    return [Fault(named[name], kind) for name, kind in GONE.items() if name in named]


def _as_written(loc: Sequence[str | int], overrides: Mapping[str, Any]) -> str:
    """The name under which whoever gave a setting wrote it."""
    field = next(f for f in Settings.model_fields if loc[0] in _names(f))
    if field in overrides:
        return field.upper()
    for source in _sources():
        for name in _names(field)[1:]:
            written = [own for own, value in source.items() if own.upper() == name and value not in ("", None)]
            if written:
                return written[0]
    return field.upper()


def _sources() -> list[Mapping[str, Any]]:
    """The environment, `.env` and `config.yaml`, the nearest first, each with its names as they were written."""
    sources: list[Mapping[str, Any]] = [os.environ]
    env_file, yaml_file = (Settings.model_config.get(f"{kind}_file") for kind in ("env", "yaml"))
    if isinstance(env_file, Path) and env_file.is_file():
        sources.append(dotenv_values(env_file, encoding="utf-8"))
    if isinstance(yaml_file, Path) and yaml_file.is_file():
        table = yaml.safe_load(yaml_file.read_text("utf-8")) or {}
        sources.append({str(name): value for name, value in table.items()})
    return sources


def unknown_settings() -> list[Notice]:
    """What `.env` and `config.yaml` name that is no setting. The environment is not asked: it holds anybody's names."""
    known = {name.upper() for field in [*Settings.model_fields, *GONE] for name in _names(field)[1:]}
    return [
        Notice("unknown_settings", {"file": file, "names": ", ".join(strange)})
        for file, names in _written_names()
        if (strange := [name for name in names if name.upper() not in known])
    ]


def _written_names() -> Iterator[tuple[str, list[str]]]:
    """The files that settings are read from, and the names that stand in each."""
    env_file, yaml_file = (Settings.model_config.get(f"{kind}_file") for kind in ("env", "yaml"))
    if isinstance(env_file, Path) and env_file.is_file():
        yield env_file.name, list(dotenv_values(env_file, encoding="utf-8"))
    if isinstance(yaml_file, Path) and yaml_file.is_file():
        table = yaml.safe_load(yaml_file.read_text("utf-8")) or {}
        yield yaml_file.name, [str(name) for name in table]


def share_metrics(folder: Path) -> None:
    """Have the worker processes that are started from here share their metrics in `folder`."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def settings_table() -> str:
    """Markdown table of the settings: name, default, meaning."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        default = info.default
        shown = "" if default is None or default == () else f"`{int(default) if default in (True, False) else default}`"
        lines.append(f"| `{name.upper()}` | {shown} | {info.description} |")
    return "\n".join(lines)
