"""Folders of labelled images, read into one form: good parts to learn from, and parts of known class to test on.

MVTec AD, BTAD   <set>/train/good · <set>/test/<class> · <set>/ground_truth/<class>/<stem>_mask.* or <stem>.*
MVTec LOCO       as MVTec AD, with several masks of an image in <set>/ground_truth/<class>/<stem>/
MVTec AD 2       as MVTec AD, with test_public/<class> and test_public/ground_truth/<class>
VisA             <set>/Data/Images/Normal · <set>/Data/Images/Anomaly · <set>/Data/Masks/Anomaly/<stem>.*
station          <role>/<roi>/ok · <role>/<roi>/ng

A mask may also lie beside its image, as <stem>_mask.*. Names of folders and masks count in any case. A folder called
good, ok or normal holds good parts, wherever a layout has one. A .json beside an image may know more of it: its `shape`
and `mm_per_px`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.errors import SetNotUnderstood, UndecodableImage
from backend.base.images import list_folders, list_images
from backend.base.messages import Phrase
from backend.roi_mask import Shape
from backend.service.sidecars import Sidecar, meta_path, read_meta

GOOD = "good"
GOOD_NAMES = frozenset({"good", "ok", "normal"})
BAD_NAMES = frozenset({"ng", "ko", "bad", "anomaly"})
TRAIN_SHARE = 2 / 3
MASK = "_mask"
NAMED = 5  # files that a warning names


@dataclass(frozen=True)
class LabelledImage:
    """An image, its class (`good` or a defect's name), and what is known of it.

    `masks`: pictures that are not black where the defect is; empty where nobody drew one. `shape`: the part inside the
    ROI. `understood`: whether its .json says nothing else of these two than what is read here.
    """

    path: Path
    label: str
    masks: tuple[Path, ...] = ()
    shape: Shape | None = None
    mm_per_px: float | None = None
    understood: bool = True

    @property
    def defective(self) -> bool:
        """Whether it is anything but good."""
        return self.label != GOOD

    def defect(self, height: int, width: int) -> NDArray[np.bool_]:
        """(height, width) bool: where the defect is, all masks together; all False without one.

        Raises:
            UndecodableImage: a mask is no picture.
        """
        found = np.zeros((height, width), bool)
        for path in self.masks:
            marked = read_mask(path).astype(np.uint8)
            found |= cv2.resize(marked, (width, height), interpolation=cv2.INTER_NEAREST) > 0
        return found


@dataclass(frozen=True)
class InspectionSet:
    """Good parts to fit on, and parts of known class to test on. `warnings`: sentences on what looks wrong with it."""

    name: str
    train: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Test images per class, good ones first."""
        found = Counter(image.label for image in self.test)
        return {GOOD: found.pop(GOOD, 0), **dict(sorted(found.items()))}

    def few(self, shots: int, rng: np.random.Generator) -> InspectionSet:
        """The same set with `shots` good parts to fit on, drawn at random."""
        chosen = rng.choice(len(self.train), size=min(shots, len(self.train)), replace=False)
        return replace(self, train=tuple(self.train[i] for i in sorted(chosen)))


def read_set(folder: Path, *, seed: int = 0) -> InspectionSet:
    """The set in `folder`, in whichever layout it is.

    VisA's layout and the station's do not say which good parts are for testing: one third, drawn with `seed`, is.

    Raises:
        SetNotUnderstood: none of the layouts, or a part of it is empty.
        UndecodableImage: a mask is no picture.
    """
    folder = folder.resolve()
    layout = _Layout.of(folder)
    test, unclear = _with_masks(_images_of(layout.classes), layout.truth, folder)
    if layout.learn is None:
        train, test = _drawn(test, seed)
    else:
        train = _images_of(layout.learn)
    if not train or len({image.defective for image in test}) < 2:
        raise SetNotUnderstood(path=folder.name)
    doubtful = [image.path for image in (*train, *test) if not image.understood]
    warnings = [
        *_about_passed_over(layout, folder),
        *_about(doubtful, folder, "Images whose .json has an mm_per_px or a shape that is not understood or used"),
        *unclear,
        *_about_copies(train, test, folder),
    ]
    return InspectionSet(layout.name, tuple(train), tuple(test), tuple(warnings))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """(h, w) bool: where the picture at `path` is not black, whatever its bit depth and number of channels.

    What is transparent counts as black. A lossy format leaves traces around what was drawn, so there a pixel counts
    from half the brightest value on.

    Raises:
        UndecodableImage: it is no picture.
    """
    data = path.read_bytes()
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        picture = None
    if picture is None:
        reason = Phrase("pixels_not_understood")
        raise UndecodableImage(name=f"{path.parent.name}/{path.name}", reason=reason)
    values = picture if picture.ndim == 2 else picture[:, :, :3].max(axis=2)
    if picture.ndim == 3 and picture.shape[2] == 4:
        values = np.where(picture[:, :, 3] > 0, values, 0)
    lossy = data.startswith(b"\xff\xd8") or data[8:16] == b"WEBPVP8 "
    marked: NDArray[np.bool_] = values > (values.max() / 2 if lossy else 0)
    return marked


@dataclass(frozen=True)
class _Layout:
    """Where a set keeps what: folders of good parts to learn from (None: those are drawn), of classes, and of masks.

    `parents`: the folders that these lie in, where nothing else is expected. `beside`: other folders next to them.
    """

    name: str
    learn: list[Path] | None
    classes: list[Path]
    truth: Path | None
    parents: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> _Layout:
        if train := _child(folder, "train"):
            test = _child(folder, "test", "test_public")
            truth = _child(folder, "ground_truth") or _child(test, "ground_truth")
            classes = [kind for kind in list_folders(test) if kind != truth] if test else []
            learn = [kind for kind in list_folders(train) if _is_good(kind)]
            parents = (train, test) if test else (train,)
            beside = tuple(other for other in list_folders(folder) if other not in {*parents, truth})
            return cls(folder.name, learn, classes, truth, parents, beside)
        data = _child(folder, "data")
        pictures = _child(data, "images")
        name = folder.name if pictures else f"{folder.parent.name}/{folder.name}"
        classes = [c for c in list_folders(pictures or folder) if c.name.casefold() in GOOD_NAMES | BAD_NAMES]
        return cls(name, None, classes, _child(data, "masks"))


def _child(folder: Path | None, *names: str) -> Path | None:
    """The first folder in `folder` that has one of `names`, in any case."""
    return next((kind for kind in list_folders(folder) if kind.name.casefold() in names), None) if folder else None


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD_NAMES


def _images_of(folders: Sequence[Path]) -> list[LabelledImage]:
    """The images of class folders, each with the name of its folder as its class; masks beside them are none."""
    found = []
    for kind in folders:
        masks = _masks_beside(kind)
        label = GOOD if _is_good(kind) else kind.name
        found += [_with_sidecar(path, label) for path in list_images(kind) if path not in masks]
    return found


def _masks_beside(folder: Path) -> set[Path]:
    """The masks among the images of a class: `<stem>_mask.*` beside `<stem>.*`."""
    by_stem = {path.stem.casefold(): path for path in list_images(folder)}
    return {path for stem, path in by_stem.items() if stem.endswith(MASK) and stem.removesuffix(MASK) in by_stem}


def _drawn(images: Sequence[LabelledImage], seed: int) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Two thirds of the good images to learn from, and the others with all bad ones to test on."""
    good = [image for image in images if not image.defective]
    order = np.random.default_rng(seed).permutation(len(good))
    n_train = max(1, round(len(good) * TRAIN_SHARE)) if good else 0
    train, test = ([good[i] for i in sorted(part)] for part in (order[:n_train], order[n_train:]))
    return train, [*test, *(image for image in images if image.defective)]


def _with_masks(
    images: Sequence[LabelledImage], truth: Path | None, root: Path
) -> tuple[list[LabelledImage], list[str]]:
    """The images with the masks that are theirs, and what is to be said of the other masks."""
    by_stem = _by_class_and_stem(truth)
    for folder in dict.fromkeys(image.path.parent for image in images):
        for path in _masks_beside(folder):
            by_stem[folder.name.casefold(), path.stem.casefold()].append(path)
    found, empty, large, used = [], [], [], set()
    for image in images:
        kind, stem = image.path.parent.name.casefold(), image.path.stem.casefold()
        own = by_stem[kind, stem] + by_stem[kind, f"{stem}{MASK}"]
        marking = [path for path in own if read_mask(path).any()]
        blank = [path for path in own if path not in marking]
        if image.defective:
            empty += blank
            large += [path for path in marking if read_mask(path).mean() > 0.5]
            used.update(own)
            found.append(replace(image, masks=tuple(marking)))
        else:  # that nothing is marked on a good part is what its class says
            used.update(blank)
            found.append(image)
    unused = [path for paths in by_stem.values() for path in paths if path not in used]
    return found, [
        *_about(empty, root, "Masks that mark nothing; their images count as without one"),
        *_about(large, root, "Masks that mark more than half of the picture; check that they are not inverted"),
        *_about(unused, root, "Masks that belong to no defective image and were not used"),
    ]


def _by_class_and_stem(truth: Path | None) -> defaultdict[tuple[str, str], list[Path]]:
    """Masks by class and stem, or by the name of the folder that holds several masks of an image; in lower case."""
    found: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    if truth is None:
        return found
    for kind in (truth, *list_folders(truth)):
        name = "" if kind == truth else kind.name.casefold()
        for path in list_images(kind):
            found[name, path.stem.casefold()].append(path)
        if kind != truth:
            for several in list_folders(kind):
                found[name, several.name.casefold()] += list_images(several)
    return found


def _about_passed_over(layout: _Layout, root: Path) -> Iterator[str]:
    """What lies in the folder of good parts or in that of the classes and is read as neither, or beside these."""
    beside = [kind for other in layout.beside for kind in (other, *list_folders(other)) if list_images(kind)]
    yield from _about(beside, root, "Folders that were passed over, since parts are read from train and test alone")
    known = {*(layout.learn or ()), *layout.classes, layout.truth}
    for parent in layout.parents:
        others = [kind for kind in list_folders(parent) if kind not in known]
        yield from _about(others, root, "Folders that were passed over, since only good parts are learnt from")
        yield from _about(
            list_images(parent), root, "Images that were passed over, since they lie in no class's folder"
        )


def _about_copies(train: Sequence[LabelledImage], test: Sequence[LabelledImage], root: Path) -> Iterator[str]:
    """Images that were learnt and are tested, and images that are tested as two classes."""
    learnt = {image.path for image in train}
    both, torn = [], []
    for copies in _copies([*train, *test]):
        tested = [image for image in copies if image.path not in learnt]
        if tested and len(tested) < len(copies):
            both += [image.path for image in tested]
        if len({image.label for image in tested}) > 1:
            torn += [image.path for image in tested]
    yield from _about(both, root, "Images that are tested and learnt from, which flatters the figures")
    yield from _about(torn, root, "Images that are tested under two classes")


def _copies(images: Sequence[LabelledImage]) -> Iterator[list[LabelledImage]]:
    """Groups of two or more images whose files are the same, byte for byte."""
    by_size: defaultdict[int, list[LabelledImage]] = defaultdict(list)
    for image in images:
        with suppress(OSError):  # whoever reads it names it
            by_size[image.path.stat().st_size].append(image)
    for alike in by_size.values():
        by_content: defaultdict[str, list[LabelledImage]] = defaultdict(list)
        for image in alike if len(alike) > 1 else ():
            by_content[hashlib.sha256(image.path.read_bytes()).hexdigest()].append(image)
        yield from (same for same in by_content.values() if len(same) > 1)


def _about(paths: Sequence[Path], root: Path, what: str) -> list[str]:
    """`what: a, b, c and 4 more.`, with the first NAMED of `paths`; nothing without any."""
    names = ", ".join(path.relative_to(root).as_posix() for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return [f"{what}: {names}{more}."] if paths else []


def _with_sidecar(path: Path, label: str) -> LabelledImage:
    known = Sidecar.read(path.name, _sidecar(path))
    return LabelledImage(path, label, (), known.shape, known.mm_per_px, understood=not known.notices)


def _sidecar(path: Path) -> dict[str, Any]:
    beside = meta_path(path)
    if beside is None:
        return {}
    try:
        return read_meta(beside)
    except (OSError, ValueError, RecursionError) as err:
        raise SetNotUnderstood(path=beside.name) from err
