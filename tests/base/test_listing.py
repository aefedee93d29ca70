"""Which files and folders count, wherever somebody hands over a folder."""

import os
from pathlib import Path

import pytest

from backend.base.images import is_image_name, list_folders, list_images


@pytest.mark.parametrize(
    "name", ["a.png", "A.PNG", "b.JpEg", "c.tif", "d.TIFF", "e.bmp", "f.webp", "part[1].jpg", "ñ 1.png"]
)
def test_images_are_listed_by_their_ending_in_any_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever is in it")
    assert is_image_name(name)
    assert list_images(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize(
    "name",
    [
        "._a.png",
        ".a.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "notes.txt",
        "a.json",
        "a.png.part",
        "png",
        ".png",
        "a.gif",
    ],
)
def test_what_is_hidden_or_no_image_is_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"x")
    assert list_images(tmp_path) == [tmp_path / "b.png"]


def test_a_folder_is_no_image_whatever_its_name_ends_in(tmp_path: Path) -> None:
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "deep.jpg").mkdir()
    (tmp_path / "deep.jpg" / "inside.png").write_bytes(b"x")
    assert list_images(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_counts_as_what_it_leads_to_and_a_broken_one_is_listed_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "folder.png").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "gone.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert [path.name for path in list_images(tmp_path)] == ["gone.png", "link.png"]


def test_a_listing_is_sorted_and_that_of_no_folder_is_empty(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "10.png", "9.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path)] == ["10.png", "9.png", "a.png", "b.png"]
    assert list_images(tmp_path / "absent") == list_images(tmp_path / "a.png") == []
    assert list_folders(tmp_path / "absent") == list_folders(tmp_path / "a.png") == []


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", ".git", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "__MACOSX", "__pycache__",
     "lost+found", "System Volume Information"],
)  # fmt: skip
def test_folders_that_nobody_made_for_parts_are_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "#3 dent").mkdir()
    assert [path.name for path in list_folders(tmp_path)] == ["#3 dent", "scratch"]
