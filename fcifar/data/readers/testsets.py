"""Test sets without training images, as ``.npy`` files: CIFAR-10.1, CIFAR-10-C and CIFAR-100-C.

CIFAR-10.1 (Recht et al., https://arxiv.org/abs/1806.00451) is ``cifar10.1_v6_data.npy`` and
``cifar10.1_v6_labels.npy``. CIFAR-10-C (Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261)
is a folder with ``labels.npy`` and a file for each corruption, such as ``fog.npy``, which holds the
test images at severities 1 to 5, one after the other.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from fcifar.data.dataset import EMPTY, Content, Split
from fcifar.data.readers import cifar, npz
from fcifar.errors import UsageError, did_you_mean, names_of, one_line, shown

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    *("snow", "frost", "fog", "brightness", "spatter"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
)
"""Of CIFAR-10-C and CIFAR-100-C."""
SEVERITIES = 5
LABELS, CLASSES = "labels.npy", "classes.npy"
_DATA = re.compile(r"(.+)_(data|images)\.npy")


class Found(NamedTuple):
    """A test set in a source."""

    images: str  # the path of its file
    labels: str
    corruption: str  # empty for a set that is not corrupted


def labels_of(name: str) -> str:
    """What the file with the labels of ``name``, a file of images, is called.

    >>> from fcifar.data.readers.testsets import labels_of
    >>> labels_of("fog.npy"), labels_of("cifar10.1_v6_data.npy")
    ('labels.npy', 'cifar10.1_v6_labels.npy')
    """
    match = _DATA.fullmatch(name)
    return f"{match[1]}_{LABELS}" if match else LABELS


def is_layout(paths: Collection[str]) -> bool:
    """Whether there are images beside labels, and nothing that says which split they are of."""
    if any((npz.parse(path) or ("", ""))[1] == "images" for path in paths):
        return False
    return bool(_find(paths)) or any(
        PurePosixPath(path).stem in CORRUPTIONS for path in paths if path.endswith(".npy")
    )


def read(
    files: Mapping[str, bytes], source: str, corruption: str | None, severity: int | None
) -> tuple[Content, str]:
    """A test set alone, and a name for it, such as ``cifar10-c-fog-3``.

    Classes are those in ``classes.npy``, if there is one; else those of CIFAR-10 or CIFAR-100 where
    file or ``source`` are called after it and there are so many; else "0", "1", ...

    Args:
        source: what the source is called.
        corruption: which, where there are several.
        severity: 1 to 5; None for all of them.

    Raises:
        UsageError: labels are missing, it is not said which of several sets, there is no such
            corruption or severity, or an array is damaged, or of another type or shape.
    """
    there = _find(files)
    if not there:
        path = next(path for path in files if path.endswith(".npy"))
        raise UsageError(
            f"{one_line(path)} has no labels beside it: {labels_of(PurePosixPath(path).name)} is "
            "missing; give the .npy file of the images, with its labels in the same folder"
        )
    found = _choose(there, corruption)
    images, labels = (npz.load_array(name, files[name]) for name in found[:2])
    if severity is not None:
        if not found.corruption or len(images) % SEVERITIES or len(images) != len(labels):
            raise UsageError(
                f"--severity does not go with {one_line(found.images)}, whose images are not "
                f"{SEVERITIES} severities one after the other; leave it out"
            )
        size = len(images) // SEVERITIES
        images, labels = (
            part[(severity - 1) * size : severity * size] for part in (images, labels)
        )
    test = npz.make_split("test", images, labels)
    preparation = {"images": len(test.images), **npz.changes([images])}
    classes, family = _classes(files.get(CLASSES), test, f"{source} {found.images}", found)
    content = Content(EMPTY, test, classes, preparation=preparation)
    if found.corruption:
        name = f"{family or 'corrupted'}-c-{found.corruption}"
        return content, name if severity is None else f"{name}-{severity}"
    match = _DATA.fullmatch(PurePosixPath(found.images).name)
    return content, re.sub(r"[._]", "-", match[1] if match else "")


def refusal(corruptions: Collection[str]) -> UsageError:
    """The error for a source of several corruptions, of which none was chosen."""
    return UsageError(
        f"there are several corruptions: {names_of(sorted(corruptions))}; give one of them with "
        f"--corruption, such as --corruption {min(corruptions)}"
    )


def unknown(corruption: str | None, there: Collection[str]) -> UsageError:
    """The error for a corruption that is not ``there``."""
    return UsageError(
        f"--corruption is {shown(corruption)}; there is {names_of(sorted(there)) or 'none'}"
        f"{did_you_mean(corruption, there)}"
    )


def _find(paths: Collection[str]) -> list[Found]:
    """Each file of images that has labels beside it."""
    found = []
    for path in sorted(paths):
        name = PurePosixPath(path)
        labels = str(name.with_name(labels_of(name.name)))
        if path.endswith(".npy") and path != labels and labels in paths and not npz.parse(path):
            pair = _DATA.fullmatch(name.name) is not None
            found.append(Found(path, labels, "" if pair else name.stem))
    return found


def _choose(found: list[Found], corruption: str | None) -> Found:
    corruptions = {each.corruption for each in found if each.corruption}
    if corruption is not None:
        if corruption not in corruptions:
            raise unknown(corruption, corruptions)
        found = [each for each in found if each.corruption == corruption]
    if len(found) == 1:
        return found[0]
    if len(corruptions) > 1:
        raise refusal(corruptions)
    raise UsageError(
        f"there are several test sets: {names_of([each.images for each in found])}; give the path "
        "of one of these files"
    )


def _classes(
    names: bytes | None, test: Split, called: str, found: Found
) -> tuple[tuple[str, ...], str]:
    """Class names, and the family that they are of: cifar10, cifar100 or none."""
    if names is not None:
        return npz.class_names(npz.load_array(CLASSES, names), [test.labels]), ""
    numbers = npz.class_names(None, [test.labels])
    if "cifar" in called.lower() or found.corruption in CORRUPTIONS:
        for family, classes in (
            ("cifar10", cifar.CLASSES),
            ("cifar100", cifar.CLASSES_100),
        ):
            if len(numbers) == len(classes):
                return classes, family
    return numbers, ""
