"""Data sets with test images only, as ``.npy`` files: CIFAR-10.1, CIFAR-10-C and CIFAR-100-C.

CIFAR-10.1 (Recht et al., https://arxiv.org/abs/1806.00451) is ``cifar10.1_v6_data.npy`` and
``cifar10.1_v6_labels.npy``. CIFAR-10-C (Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261)
is a folder with ``labels.npy`` and a file for each corruption, such as ``fog.npy``, with the test
images at severities 1 to 5, one after the other.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from fcifar.data.dataset import EMPTY, Content, ImportOptions
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
    """The paths of a test set in a source."""

    images: str
    labels: str
    corruption: str  # "" for a set that is not corrupted


def labels_of(name: str) -> str:
    """Return the name of the file with the labels of the images in file ``name``.

    >>> from fcifar.data.readers.testsets import labels_of
    >>> labels_of("fog.npy"), labels_of("cifar10.1_v6_data.npy")
    ('labels.npy', 'cifar10.1_v6_labels.npy')
    """
    match = _DATA.fullmatch(name)
    return f"{match[1]}_{LABELS}" if match else LABELS


def is_layout(paths: Collection[str]) -> bool:
    """Whether there are images beside labels, and no name that says which split they are."""
    if any((npz.parse(path) or ("", ""))[1] == "images" for path in paths):
        return False
    corrupted = (
        path.endswith(".npy") and PurePosixPath(path).stem in CORRUPTIONS for path in paths
    )
    return bool(_find(paths)) or any(corrupted)


def read(files: Mapping[str, bytes], source: str, options: ImportOptions) -> tuple[Content, str]:
    """Return a test set, and a name for it, such as ``cifar10-c-fog-3``.

    Class names are those in ``classes.npy``, if there is one; those of CIFAR-10 or CIFAR-100 if the
    file or ``source`` is named after it and the number of classes fits; else "0", "1", ...

    ``corruption`` and ``severity`` of the options are used.
    """
    found = _choose(files, options.corruption)
    images, labels = (npz.load_array(path, files[path]) for path in found[:2])
    severity = options.severity
    if severity is not None:
        if not found.corruption or len(images) % SEVERITIES or len(images) != len(labels):
            raise UsageError(
                f"--severity does not go with {one_line(found.images)}, whose images are not "
                f"{SEVERITIES} severities one after the other; leave it out"
            )
        size = len(images) // SEVERITIES
        rows = slice((severity - 1) * size, severity * size)
        images, labels = images[rows], labels[rows]
    test = npz.make_split("test", images, labels)
    preparation = {"images": len(test.images), **npz.changes([images])}
    names = npz.load_array(CLASSES, files[CLASSES]) if CLASSES in files else None
    classes, family = npz.class_names(names, [test.labels]), "corrupted"
    if names is None and (
        "cifar" in f"{source} {found.images}".lower() or found.corruption in CORRUPTIONS
    ):
        for known, its_classes in (("cifar10", cifar.CLASSES), ("cifar100", cifar.CLASSES_100)):
            if len(classes) == len(its_classes):
                classes, family = its_classes, known
    if found.corruption:
        name = f"{family}-c-{found.corruption}{'' if severity is None else f'-{severity}'}"
    else:
        match = _DATA.fullmatch(PurePosixPath(found.images).name)
        name = re.sub(r"[._]", "-", match[1] if match else "")
    return Content(EMPTY, test, classes, preparation=preparation), name


def cannot_choose(corruption: str | None, there: Collection[str]) -> UsageError:
    """Return the error for no corruption, or one that is not ``there``, where there are several."""
    if corruption is None:
        return UsageError(
            f"there are several corruptions: {names_of(sorted(there))}; give one of them with "
            f"--corruption, such as --corruption {min(there)}"
        )
    return UsageError(
        f"--corruption is {shown(corruption)}; there is {names_of(sorted(there)) or 'none'}"
        f"{did_you_mean(corruption, there)}"
    )


def _find(paths: Collection[str]) -> list[Found]:
    """Every file of images with labels beside it."""
    found = []
    for path in sorted(paths):
        name = PurePosixPath(path)
        labels = str(name.with_name(labels_of(name.name)))
        if path.endswith(".npy") and path != labels and labels in paths and not npz.parse(path):
            found.append(Found(path, labels, "" if _DATA.fullmatch(name.name) else name.stem))
    return found


def _choose(paths: Collection[str], corruption: str | None) -> Found:
    found = _find(paths)
    if not found:
        path = next(path for path in paths if path.endswith(".npy"))
        raise UsageError(
            f"{one_line(path)} has no labels beside it: {labels_of(PurePosixPath(path).name)} is "
            "missing; give the .npy file of the images, with its labels in the same folder"
        )
    corruptions = {each.corruption for each in found if each.corruption}
    if corruption is not None:
        if corruption not in corruptions:
            raise cannot_choose(corruption, corruptions)
        found = [each for each in found if each.corruption == corruption]
    if len(found) == 1:
        return found[0]
    if len(corruptions) > 1:
        raise cannot_choose(None, corruptions)
    raise UsageError(
        f"there are several test sets: {names_of([each.images for each in found])}; give the path "
        "of one of these files"
    )
