"""Images of a fit without themselves, through real fits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.assurance.suspects import about_suspects, suspects, suspects_of
from backend.base.keys import ModelKey
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from tests.parts import encoded, good_files, image_file, part, quick_settings

KEY = ModelKey.of("Master1", "Pattern")


@pytest.fixture
def fitter(tmp_path: Path) -> Iterator[Fitter]:
    inspector = Inspector(quick_settings(tmp_path, coreset_rate=0.5))
    inspector.start()
    yield Fitter(inspector)
    inspector.close()


def bad(name: str, form: str = "PNG") -> ImageFile:
    data = encoded(part(30, defect=True), form)
    return ImageFile.named(name, lambda: data)


def named(fitter: Fitter, files: list[ImageFile]) -> list[str]:
    result = fitter.fit(KEY, files, mm_per_px=0.2)
    assert result.left_out is not None and len(result.left_out.scores) == len(files)
    found, names = suspects_of(result)
    return [names[one.place] for one in found]


def test_a_bad_part_among_the_good_of_a_fit_is_named(fitter: Fitter) -> None:
    files = [*good_files(12), bad("bad.png")]
    assert named(fitter, files)[0] == "bad.png"


def test_good_parts_alone_are_not(fitter: Fitter) -> None:
    assert named(fitter, good_files(14)) == []


@pytest.mark.parametrize("forms", [("PNG", "PNG"), ("PNG", "BMP"), ("PNG", "TIFF", "BMP")])
def test_copies_of_a_bad_part_do_not_vouch_for_each_other(fitter: Fitter, forms: tuple[str, ...]) -> None:
    copies = [bad(f"bad_{n}", form) for n, form in enumerate(forms)]
    assert set(named(fitter, [*good_files(16), *copies])[: len(copies)]) == {copy.name for copy in copies}


def test_a_growth_looks_at_the_new_images_alone(fitter: Fitter) -> None:
    fitter.fit(KEY, good_files(6), mm_per_px=0.2)
    new = [*(image_file(part(seed), f"new_{seed}.png") for seed in range(40, 49)), bad("bad.png")]
    result = fitter.grow(KEY, new, mm_per_px=0.2)
    found, names = suspects_of(result)
    assert names == [file.name for file in new] and [names[one.place] for one in found[:1]] == ["bad.png"]
    (notice,) = about_suspects(found[:1], names)
    assert notice.values["names"] == "bad.png"


def test_of_few_images_nothing_is_said(fitter: Fitter) -> None:
    assert fitter.fit(KEY, good_files(4), mm_per_px=0.2).left_out is None
    assert suspects_of(fitter.fit(KEY, good_files(4), mm_per_px=0.2)) == ([], [])


def test_a_memory_chosen_in_passes_keeps_nothing_to_compare(tmp_path: Path) -> None:
    inspector = Inspector(quick_settings(tmp_path, coreset_rate=0.05, fit_memory_mb=0.1))
    inspector.start()
    result = Fitter(inspector).fit(KEY, good_files(8), mm_per_px=0.2)
    inspector.close()
    assert result.metadata["in_passes"] and result.left_out is None


def test_a_memory_of_one_images_rows_says_nothing(tmp_path: Path) -> None:
    inspector = Inspector(quick_settings(tmp_path, max_coreset=1))
    inspector.start()
    assert Fitter(inspector).fit(KEY, good_files(8), mm_per_px=0.2).left_out is None
    inspector.close()


@pytest.mark.parametrize("setting", [{"foreground_mask": "pca"}, {"patchcore_distance": "mahalanobis"}])
def test_other_kinds_of_memory_are_looked_at_too(tmp_path: Path, setting: dict[str, str]) -> None:
    inspector = Inspector(quick_settings(tmp_path, coreset_rate=0.5, **setting))
    inspector.start()
    result = Fitter(inspector).fit(KEY, [*good_files(10), bad("bad.png")], mm_per_px=0.2)
    inspector.close()
    assert result.left_out is not None and suspects(result.left_out)[0].place == 10
