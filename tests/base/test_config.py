from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from backend.api.catalogue import sentence
from backend.base.config import GONE, OTHER_SPELLINGS, PROJECT_ROOT, Settings, load_settings
from backend.base.errors import InvalidSettings

Give = Callable[..., Settings]


@pytest.fixture
def give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """Settings of an environment, a .env text, a config.yaml text and keyword arguments."""

    def settings(env: Mapping[str, str] = {}, dotenv: str = "", yaml: str = "", **overrides: Any) -> Settings:
        (tmp_path / ".env").write_text(dotenv, "utf-8")
        (tmp_path / "config.yaml").write_text(yaml, "utf-8")
        monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
        monkeypatch.setitem(Settings.model_config, "yaml_file", tmp_path / "config.yaml")
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return load_settings(**overrides)

    return settings


RATES = [
    ({"BDI_CORESET_RATE": "0.1", "CORESET_RATE": "0.2"}, "", ""),
    ({"CORESET_RATE": "0.1", "PATCHCORE_CORESET_RATIO": "0.2"}, "", ""),
    ({"CORESET_RATE": "0.1"}, "BDI_CORESET_RATE=0.2", ""),
    ({"PATCHCORE_CORESET_RATIO": "0.1"}, "BDI_CORESET_RATE=0.2", "coreset_rate: 0.3"),
    ({}, "BDI_CORESET_RATE=0.1\nCORESET_RATE=0.2", ""),
    ({}, "CORESET_RATE=0.1", "BDI_CORESET_RATE: 0.2"),
    ({}, "PATCHCORE_CORESET_RATIO=0.1", "CORESET_RATE: 0.2"),
    ({}, "", "coreset_rate: 0.1\nPATCHCORE_CORESET_RATIO: 0.2"),
    ({}, "", "Coreset_Rate: 0.1"),
    ({}, "", "PATCHCORE_CORESET_RATIO: 0.1"),
    ({"BDI_CORESET_RATE": ""}, "CORESET_RATE=0.1", ""),
]


@pytest.mark.parametrize(("env", "dotenv", "yaml"), RATES)
def test_the_nearest_source_of_a_setting_wins(give: Give, env: dict[str, str], dotenv: str, yaml: str) -> None:
    assert give(env, dotenv, yaml).coreset_rate == 0.1


def test_what_code_says_comes_before_everything(give: Give) -> None:
    settings = give({"BDI_CORESET_RATE": "0.2"}, "CORESET_RATE=0.3", "coreset_rate: 0.4", coreset_rate=0.1)
    assert settings.coreset_rate == 0.1


@pytest.mark.parametrize(("field", "spelling"), [(f, s) for f, names in OTHER_SPELLINGS.items() for s in names])
def test_the_documents_spellings_work(give: Give, field: str, spelling: str) -> None:
    value = {"coreset_rate": 0.05, "max_batch": 7}[field]
    assert getattr(give({spelling: str(value)}), field) == value


@pytest.mark.parametrize(("field", "spelling"), [(f, s) for f, names in OTHER_SPELLINGS.items() for s in names])
def test_the_documents_spellings_work_with_the_prefix_too(give: Give, field: str, spelling: str) -> None:
    value = {"coreset_rate": 0.05, "max_batch": 7}[field]
    assert getattr(give({f"BDI_{spelling}": str(value), spelling: "1"}), field) == value
    assert getattr(give(yaml=f"BDI_{spelling}: {value}"), field) == value


def choices_of(name: str) -> tuple[Any, ...]:
    annotation = Settings.model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if choices_of(name)])
def test_choices_are_known_in_any_case_and_with_spaces_around_them(give: Give, name: str) -> None:
    for choice in choices_of(name):
        for written in (choice.lower(), choice.upper(), f" {choice.title()} "):
            assert getattr(give({name.upper(): written}), name) == choice


def test_numbers_and_switches_may_have_spaces_around_them(give: Give) -> None:
    spaced = {
        "PORT": " 9000",
        "CORESET_RATE": "0.1 ",
        "CONTRACT_ONLY": " True ",
        "SAVE_VIS": " 0 ",
        "THREADS": " auto ",
    }
    settings = give({**spaced, "THREADS": " auto ", "PATCHCORE_USE_GPU": " false "})
    assert (settings.port, settings.coreset_rate, settings.threads) == (9000, 0.1, None)
    assert settings.contract_only and not settings.save_vis and settings.device == "cpu"


@pytest.mark.parametrize("value", ["0", "1", "True", "false"])
def test_the_older_switch_for_half_precision_is_accepted(give: Give, value: str) -> None:
    settings = give({"PATCHCORE_FAISS_FP16": value})
    assert settings.patchcore_faiss_fp16 is (value in {"1", "True"})
    assert settings.memory_dtype == ("float16" if value in {"1", "True"} else "float32")
    assert give({"PATCHCORE_FAISS_FP16": value, "MEMORY_DTYPE": "int8"}).memory_dtype == "int8"


@pytest.mark.parametrize("value", ["none", "None", " none "])
def test_none_in_a_list_means_an_empty_one(give: Give, value: str) -> None:
    settings = give({"API_KEYS": value, "API_KEYS_READ": value, "CORS_ORIGINS": value})
    assert settings.api_keys == settings.api_keys_read == settings.cors_origins == ()


@pytest.mark.parametrize(
    ("env", "device"),
    [
        ({"PATCHCORE_USE_GPU": "False"}, "cpu"),
        ({"PATCHCORE_USE_GPU": "0"}, "cpu"),
        ({"BDI_PATCHCORE_USE_GPU": "no"}, "cpu"),
        ({"PATCHCORE_USE_GPU": "True"}, "auto"),
        ({"PATCHCORE_USE_GPU": "false", "DEVICE": "cuda"}, "cuda"),
        ({}, "auto"),
    ],
)
def test_the_older_gpu_switch_chooses_the_device(give: Give, env: dict[str, str], device: str) -> None:
    assert give(env).device == device


def test_the_older_gpu_switch_works_from_yaml_too(give: Give) -> None:
    assert give(yaml="PATCHCORE_USE_GPU: false").device == "cpu"


def test_relative_folders_are_relative_to_the_project(give: Give, tmp_path: Path) -> None:
    assert give({"MODELS_DIR": "here/models"}).models_dir == PROJECT_ROOT / "here" / "models"
    assert give({"BDI_DATASETS_DIR": str(tmp_path)}).datasets_dir == tmp_path


def test_lists_are_separated_by_commas(give: Give) -> None:
    settings = give({"API_KEYS": " one, two ,", "CORS_ORIGINS": "http://a"}, yaml="blocks: [3, '5']")
    assert settings.blocks == ("3", "5")
    assert give(yaml="blocks: 7").blocks == ("7",)
    assert settings.api_keys == ("one", "two")
    assert settings.cors_origins == ("http://a",)


@pytest.mark.parametrize("value", ["auto", "none", "AUTO"])
def test_auto_means_that_the_service_chooses(give: Give, value: str) -> None:
    assert give({"MAX_BATCH": value, "THREADS": value}).max_batch is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CORESET_RATE", "0"),
        ("CORESET_RATE", "nan"),
        ("PATCHCORE_CORESET_RATIO", "2"),
        ("SCORE_PERCENTILE", "101"),
        ("SCORE_PERCENTILE", "0"),
        ("INPUT_SIZE", "big"),
        ("DEVICE", "tpu"),
        ("PATCHCORE_USE_GPU", "maybe"),
        ("BLOCKS", "9,eleven"),
        ("PORT", "70000"),
        ("MAX_QUEUE", "0"),
        ("API_KEYS", "sha256:12"),
        ("REQUIRE_PRETRAINED", "perhaps"),
    ],
)
def test_a_bad_value_names_its_setting(give: Give, name: str, value: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        give({name: value})
    assert f" {name}: " in sentence(caught.value, "en")
    assert caught.value.code == "invalid_settings"


WRITTEN: list[tuple[dict[str, str], str, str, str]] = [
    ({"PORT": "x"}, "", "", "PORT"),
    ({"BDI_PORT": "x"}, "", "", "BDI_PORT"),
    ({"BDI_PATCHCORE_CORESET_RATIO": "2"}, "", "", "BDI_PATCHCORE_CORESET_RATIO"),
    ({}, "BDI_CORESET_RATE=2", "", "BDI_CORESET_RATE"),
    ({}, "coreset_rate=2", "", "coreset_rate"),
    ({}, "", "Coreset_Rate: 2", "Coreset_Rate"),
    ({"BDI_PORT": ""}, "", "port: [1]", "port"),
]


@pytest.mark.parametrize(("env", "dotenv", "yaml", "name"), WRITTEN)
def test_a_bad_value_is_named_as_it_was_written(
    give: Give, env: dict[str, str], dotenv: str, yaml: str, name: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        give(env, dotenv, yaml)
    assert f" {name}: " in sentence(caught.value, "en")


def test_a_bad_value_given_in_code_is_named_by_its_setting(give: Give) -> None:
    with pytest.raises(InvalidSettings) as caught:
        give({"BDI_PORT": "1"}, port=70_000)
    assert sentence(caught.value, "en").endswith(" PORT: must be 65535 or less")


@pytest.mark.parametrize(
    ("name", "value", "spanish", "english"),
    [
        ("PORT", "70000", "debe ser 65535 o menos", "must be 65535 or less"),
        ("DEVICE", "tpu", "debe ser uno de: auto, cpu, cuda", "must be one of: auto, cpu, cuda"),
        ("PATCHCORE_PATCH_SIZE", "2", "debe ser impar", "must be odd"),
        ("RATE_LIMIT", "often", "debe ser como 600/minute", "must be such as 600/minute"),
        ("REQUIRE_PRETRAINED", "perhaps", "debe ser true o false", "must be true or false"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said_plainly(
    give: Give, name: str, value: str, spanish: str, english: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        give({name: value})
    assert sentence(caught.value, "es") == f"La configuración no es válida: {name}: {spanish}".rstrip() + (
        ": una vecindad tiene su token en el centro" if name == "PATCHCORE_PATCH_SIZE" else ""
    )
    assert english in sentence(caught.value, "en") and "Input should" not in sentence(caught.value, "en")


@pytest.mark.parametrize("name", GONE)
@pytest.mark.parametrize("place", ["env", "dotenv", "yaml", "code"])
def test_a_setting_that_is_gone_is_answered_with_what_became_of_it(give: Give, name: str, place: str) -> None:
    written = {"env": f"BDI_{name}", "dotenv": name, "yaml": name.lower(), "code": name}[place]
    sources: dict[str, dict[str, Any]] = {
        "env": {"env": {written: "x"}},
        "dotenv": {"dotenv": f"{written}=x"},
        "yaml": {"yaml": f"{written}: x"},
        "code": {written: "x"},
    }
    with pytest.raises(InvalidSettings) as caught:
        give(**sources[place])
    assert f" {written}: ya no existe, porque " in sentence(caught.value, "es")
    assert f" {written}: is gone, since " in sentence(caught.value, "en")


def test_a_name_that_is_gone_does_no_harm_without_a_value(give: Give) -> None:
    assert give(dict.fromkeys(GONE, ""), yaml="\n".join(f"{name}:" for name in GONE)).port == 8000


@pytest.mark.parametrize("yaml", ["coreset_rate: [0.1", "- coreset_rate", "just words", "coreset_rate: 0.1: 0.2"])
def test_a_config_file_that_is_no_table_is_named(give: Give, yaml: str) -> None:
    with pytest.raises(InvalidSettings, match=r"config\.yaml"):
        give(yaml=yaml)


def test_an_env_file_that_is_not_text_is_named(give: Give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary.env").write_bytes(b"\xff\xfeC\0")
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / "binary.env")
    with pytest.raises(InvalidSettings, match="env_not_utf8") as caught:
        load_settings()
    assert ".env is not UTF-8 text" in sentence(caught.value, "en")


def test_unknown_names_in_the_files_are_let_be(give: Give) -> None:
    assert give({}, "SOMEBODY_ELSES=1", "theirs: 2").coreset_rate == 0.02


def test_settings_do_not_change_once_read(give: Give) -> None:
    with pytest.raises(ValueError, match="frozen"):
        give().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
