"""From images of good parts to the embeddings of a fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.errors import (
    BadImage,
    Cancelled,
    MaskEmpty,
    TokenGridMismatch,
)
from backend.base.images import decode_image, encode_png
from backend.extractors.texture import TextureFeatures
from backend.memory.chunked import Budget
from backend.roi_mask import Shape, build_mask, token_mask
from backend.service.embedding import Augmentation, Embeddings, embed_images, rows_of_several
from backend.service.images import ImageFile
from backend.service.jobs import Job
from backend.service.queue import InferenceQueue
from tests.parts import good_files, image_file, part

TURNED = Augmentation(rotation_deg=6, jitter=0.1)


@pytest.fixture
def queue() -> Iterator[InferenceQueue]:
    queue = InferenceQueue(TextureFeatures(112))
    yield queue
    queue.close()


def embed(queue: InferenceQueue, files: Sequence[ImageFile], **given: Any) -> Embeddings:
    return embed_images(files, queue, Job(), **given)


def tokens_of(queue: InferenceQueue, file: ImageFile) -> NDArray[np.float32]:
    return embed(queue, [file]).emb


def test_rows_come_in_the_order_of_the_files_and_know_theirs(queue: InferenceQueue) -> None:
    files = good_files(5)
    found = embed(queue, files)
    np.testing.assert_array_equal(found.emb, np.concatenate([tokens_of(queue, file) for file in files]))
    assert found.emb.dtype == np.float32 and found.grid == (8, 8) and found.counts == [64] * 5
    assert found.image_ids.dtype == np.int32 and found.image_ids.tolist() == np.repeat(range(5), 64).tolist()
    assert found.n_embeddings == 320 and not found.masked and not found.mixed


def test_a_file_that_comes_twice_has_the_number_of_the_first(queue: InferenceQueue) -> None:
    one, two = good_files(2)
    found = embed(queue, [one, two, replace(one, name="copy.png")])
    assert found.image_ids.tolist() == np.repeat([0, 1, 0], 64).tolist()
    assert found.digests[0] == found.digests[2] != found.digests[1]


def test_rows_of_several_images_are_found_bit_for_bit(rng: np.random.Generator) -> None:
    emb = rng.standard_normal((6, 8)).astype(np.float32)
    emb[3], emb[5] = emb[0], emb[4]
    emb[2, :5] = emb[1, :5]
    several = rows_of_several(emb, np.array([0, 0, 1, 1, 2, 2], np.int32))
    assert several.tolist() == [True, False, False, True, False, False]


def test_rows_that_images_share_belong_to_none_of_them(queue: InferenceQueue) -> None:
    first, second = (part(3, height=112, width=112) for _ in range(2))
    second[70:] = np.roll(second[70:], 9, axis=1)
    found = embed(queue, [image_file(first), image_file(second)])
    assert set(found.image_ids[:16].tolist()) == {-1} == set(found.image_ids[64:80].tolist())
    assert found.image_ids[-8:].tolist() == [1] * 8


def test_of_a_file_with_a_shape_only_what_touches_the_part_is_kept(queue: InferenceQueue) -> None:
    shape = Shape("circle", {"cx": 30, "cy": 40, "r": 20})
    plain, other = good_files(2)
    found = embed(queue, [replace(plain, shape=shape), other], augmentation=TURNED)
    mask = build_mask(shape, 96, 96)
    assert mask is not None
    inside = token_mask(mask, (8, 8)).ravel()
    assert 0 < inside.sum() < 40 and found.counts == [2 * inside.sum(), 128]
    np.testing.assert_array_equal(found.emb[: inside.sum()], tokens_of(queue, plain)[inside])
    assert found.mixed and not found.masked and found.shaped == [True, False]


def test_a_view_differs_as_far_as_it_may(rng: np.random.Generator) -> None:
    image = part(0, defect=True)
    assert not Augmentation()
    turned = Augmentation(rotation_deg=5).view(image, rng)
    lit = Augmentation(jitter=0.1).view(image, rng)
    assert turned.shape == lit.shape == image.shape
    assert turned.dtype == lit.dtype == np.uint8
    assert 0 < np.abs(turned.mean() - image.mean()) < 5
    assert 0 < np.abs(lit.astype(float) - image).mean() < 0.25 * image.mean()


def test_each_image_is_followed_by_the_view_that_seed_and_content_give(queue: InferenceQueue) -> None:
    files = good_files(2)
    found = embed(queue, files, augmentation=TURNED, seed=3)
    assert found.counts == [128, 128] and found.image_ids.tolist() == np.repeat([0, 1], 128).tolist()
    for number, file in enumerate(files):
        content = np.frombuffer(bytes.fromhex(found.digests[number]), np.uint32)
        view = TURNED.view(decode_image(file.read()), np.random.default_rng([3, *content.tolist()]))
        rows = np.split(found.emb, 4)
        np.testing.assert_array_equal(rows[2 * number], tokens_of(queue, file))
        np.testing.assert_array_equal(rows[2 * number + 1], tokens_of(queue, image_file(view)))
    alone = embed(queue, files[1:], augmentation=TURNED, seed=3)
    np.testing.assert_array_equal(alone.emb, found.emb[128:])
    assert not np.array_equal(embed(queue, files, augmentation=TURNED, seed=4).emb, found.emb)


def test_beyond_its_budget_a_coreset_is_chosen_in_passes_and_rows_know_their_images(queue: InferenceQueue) -> None:
    files = good_files(12)
    whole = embed(queue, files, augmentation=TURNED)
    needs = whole.emb.nbytes / 2**20
    found = embed(queue, files, augmentation=TURNED, budget=Budget(megabytes=needs * 0.9, rate=0.05, limit=999, seed=0))
    assert found.passes is not None and found.n_embeddings == len(whole.emb) == 12 * 128
    assert len(found.emb) == round(0.05 * 12 * 128)
    for row, image in zip(found.emb, found.image_ids, strict=True):
        if image >= 0:
            assert (whole.emb[128 * image : 128 * (image + 1)] == row).all(axis=1).any()
    enough = embed(queue, files, augmentation=TURNED, budget=Budget(megabytes=needs, rate=0.05, limit=999, seed=0))
    assert enough.passes is None
    np.testing.assert_array_equal(enough.emb, whole.emb)


def test_some_of_the_images_are_what_they_would_be_alone(queue: InferenceQueue) -> None:
    shape = Shape("circle", {"cx": 30, "cy": 40, "r": 20})
    files = [replace(file, shape=shape if n % 2 else None) for n, file in enumerate(good_files(4))]
    found, alone = embed(queue, files).only([1, 2]), embed(queue, files[1:3])
    np.testing.assert_array_equal(found.emb, alone.emb)
    np.testing.assert_array_equal(found.image_ids, alone.image_ids)
    assert (found.digests, found.counts, found.shaped) == (alone.digests, alone.counts, alone.shaped)
    assert len(embed(queue, files).only([]).emb) == 0


def test_the_first_file_that_cannot_be_used_is_named(queue: InferenceQueue) -> None:
    good, broken = good_files(1)[0], ImageFile("broken.png", lambda: b"no image")
    wide = image_file(part(1, width=200), "wide.png")
    masked = replace(good, name="masked.png", shape=Shape("circle", {"cx": 900, "cy": 0, "r": 2}))
    cases: list[tuple[list[ImageFile], type[Exception], str]] = [
        ([good, good, broken, wide], BadImage, "broken.png"),
        ([good, wide, broken], TokenGridMismatch, "wide.png"),
        ([good, masked, broken], MaskEmpty, "width=96, height=96"),
        ([broken, good], BadImage, "broken.png"),
    ]
    for files, error, said in cases:
        with pytest.raises(error, match=said):
            embed(queue, files)
    with pytest.raises(TokenGridMismatch, match=r"expected=\(5, 11\)"):
        embed(queue, [good], expected=(5, 11))


def test_it_tells_how_far_it_is_and_stops_when_cancelled(queue: InferenceQueue) -> None:
    class Watched(Job):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[str, int, int]] = []

        def report(self, stage: str, done: int, total: int) -> None:
            self.seen.append((stage, done, total))
            if done == 3:
                self.cancel()

    job = Watched()
    with pytest.raises(Cancelled):
        embed_images(good_files(4), queue, job, augmentation=TURNED)
    assert job.seen == [("extract", n, 8) for n in (1, 2, 3)]


def test_a_view_is_made_of_pixels_and_a_large_image_has_one_too(queue: InferenceQueue) -> None:
    large = encode_png(np.resize(part(2), (900, 900, 3)))
    found = embed(
        queue, [ImageFile("large.png", lambda: large)], augmentation=TURNED, images=ImageOptions(max_megapixels=1)
    )
    assert found.counts == [128]
