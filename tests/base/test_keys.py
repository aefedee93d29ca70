"""Ids are what their folders are, on every file system alike."""

import unicodedata
from pathlib import Path

import pytest

from backend.base.errors import IdTwin
from backend.base.keys import ModelKey, folder_of, twins


def stored(root: Path, *parts: str) -> Path:
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("there", "asked", "field"),
    [
        (("Master1", "Pattern"), ("master1", "Pattern"), "role_id"),
        (("Master1", "Pattern"), ("Master1", "PATTERN"), "roi_id"),
        (("STRASSE", "roi"), ("straße", "roi"), "role_id"),
        (("Señal", "roi"), ("SEÑAL", "roi"), "role_id"),
        ((unicodedata.normalize("NFD", "Señal"), "roi"), ("señal", "roi"), "role_id"),
        (("recipes", "night", "Master1", "roi"), ("MASTER1", "roi", "night"), "role_id"),
    ],
)
def test_an_id_that_differs_in_case_alone_is_refused_and_names_its_twin(
    tmp_path: Path, there: tuple[str, ...], asked: tuple[str, ...], field: str
) -> None:
    stored(tmp_path, *there)
    with pytest.raises(IdTwin) as caught:
        folder_of(tmp_path, ModelKey.of(*asked))
    assert caught.value.values["field"] == field
    assert unicodedata.normalize("NFC", caught.value.values["twin"]) == caught.value.values["twin"]


def test_a_folder_in_another_normal_form_is_the_models_own(tmp_path: Path) -> None:
    folder = stored(tmp_path, unicodedata.normalize("NFD", "Señal"), unicodedata.normalize("NFD", "Área"))
    assert folder_of(tmp_path, ModelKey.of("Señal", "Área")) == folder


def test_a_pair_that_is_there_already_stays_readable_and_is_named(tmp_path: Path) -> None:
    for name in ("Master1", "master1"):
        stored(tmp_path, name, "roi")
    for name, other in (("Master1", "master1"), ("master1", "Master1")):
        key = ModelKey.of(name, "roi")
        assert folder_of(tmp_path, key) == tmp_path / name / "roi"
        assert twins(tmp_path, key) == [other]


@pytest.mark.parametrize("asked", [("Master1", "Pattern"), ("Other", "Pattern"), ("Master1", "Other")])
def test_other_ids_are_new_folders(tmp_path: Path, asked: tuple[str, str]) -> None:
    stored(tmp_path, "Master1", "Pattern")
    assert folder_of(tmp_path, ModelKey.of(*asked)) == tmp_path.joinpath(*asked)
    assert twins(tmp_path, ModelKey.of(*asked)) == []
