"""Arrays in an ``.npz``, or ``.npy`` files in a folder: images and labels of each split.

``train_images``, ``train_labels``, ``test_images`` and ``test_labels``; ``val_images`` and
``val_labels`` are the given validation split. Other common names are accepted, such as ``x_train``
and ``y_train``; see ``parse``. Classes are named by an array ``classes``, else "0", "1", ...

Test sets are ``.npy`` files as well: CIFAR-10.1 (https://arxiv.org/abs/1806.00451) is
``cifar10.1_v6_data.npy`` and ``cifar10.1_v6_labels.npy``, CIFAR-10-C
(https://arxiv.org/abs/1903.12261) a folder with ``labels.npy`` and a file for each corruption, such
as ``fog.npy``, with the test images at severities 1 to 5, one after the other.
"""

import io
import math
import re
import tokenize
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from fcifar.data import image_files
from fcifar.data.dataset import EMPTY, SIDE, Content, ImportOptions, Split
from fcifar.data.readers import cifar
from fcifar.data.split import hold_out_test
from fcifar.data.throttle import Progress
from fcifar.errors import UsageError, did_you_mean, names_of, one_line, reason, shown

_MOST_CLASSES = 100_000  # a larger label is a mistake, and would make as many names
_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
    "": ("",),  # no particular split
}
_KINDS = {
    "images": ("images", "image", "imgs", "data", "x"),
    "labels": ("labels", "label", "targets", "target", "y"),
}
_SPELLINGS = {
    spelling: (split, kind)
    for split, names in _SPLITS.items()
    for kind, words in _KINDS.items()
    for name in names
    for word in words
    for spelling in (name + word, word + name)
} | dict.fromkeys(("classes", "classnames", "labelnames"), ("", "classes"))
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
_ADJECTIVES = {"train": "training", "valid": "validation", "test": "test"}

# numpy parses headers as Python literals; these are its errors for damaged ones.
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError, SyntaxError, tokenize.TokenError),
    *(OverflowError, RecursionError, MemoryError),
)

Meaning = tuple[
    str, str
]  # split ("train", "valid", "test" or ""), and "images", "labels", "classes"


def parse(path: str) -> Meaning | None:
    """Return the split and kind of the array in a file, by its name; None if it is unknown.

    >>> from fcifar.data.readers.npz import parse
    >>> parse("train_images.npy"), parse("Y_test.npy"), parse("val/images.npy"), parse("fog.npy")
    (('train', 'images'), ('test', 'labels'), ('valid', 'images'), None)
    """
    if not path.endswith(".npy"):
        return None
    return _SPELLINGS.get(re.sub(r"[/_. -]", "", path.removesuffix(".npy").lower()))


def read(
    files: Mapping[str, bytes],
    options: ImportOptions = ImportOptions(),  # noqa: B008
    progress: Progress = lambda *_: None,
) -> Content:
    """Read images, uint8 [N, H, W] or with 1, 3 or 4 channels first or last, and integer labels,
    [N] or [N, 1]. Grey images become RGB, and transparency is composited on white.

    Test arrays without training arrays are a data set with a test split only. Without test arrays,
    validation arrays beside training arrays are the test split.

    ``resize``, ``test_fraction`` and ``seed`` of the options are used.
    """
    found: dict[Meaning, str] = {}
    for path in files:
        meaning = parse(path)
        if meaning in found:
            names = f"{one_line(found[meaning])} and {one_line(path)}"
            raise UsageError(f"{names} are the same by their names; keep the one that counts")
        if meaning is not None:
            found[meaning] = path
    sources = _sources(found, held_out=bool(options.test_fraction))
    arrays = {
        meaning: load_array(name, files[name])
        for meaning, name in found.items()
        if meaning[0] in sources.values() or meaning[1] == "classes"
    }
    parts = {}
    for split, own in sources.items():
        images, labels = arrays[own, "images"], arrays[own, "labels"]
        parts[split] = make_split(split, images, labels, options.resize, progress)
    classes = class_names(arrays.get(("", "classes")), [part.labels for part in parts.values()])
    if options.test_fraction:
        parts["train"], parts["test"] = hold_out_test(parts["train"], classes, options)
    used = {found[meaning] for meaning in arrays}
    test_from = found["valid", "images"] if sources.get("test") == "valid" else ""
    preparation = {
        "images": sum(len(part.images) for part in parts.values()),
        **changes([arrays[own, "images"] for own in sources.values()]),
        "others": [p[:-4] for p in sorted(files) if p.endswith(".npy") and p not in used],
        "test_from": test_from.removesuffix(".npy"),
    }
    train, valid = parts.get("train", EMPTY), parts.get("valid", EMPTY)
    return Content(train, parts["test"], classes, valid, preparation)


def _sources(found: Mapping[Meaning, str], *, held_out: bool) -> dict[str, str]:
    """The split, by name, of the arrays for each split. Raise a UsageError if any are missing."""
    own = {split for split, kind in found if kind != "classes"}
    if "test" in own and held_out:
        raise UsageError("there are test images already; leave --test-fraction out")
    sources = {split: split for split in ("train", "valid", "test") if split in own}
    if "train" not in own and (held_out or {"", "test"} <= own):
        sources = {"train": "" if "" in own else "train"} | sources
    if sources.keys() == {"train", "valid"} and not held_out:
        sources = {"train": sources["train"], "test": "valid"}
    solution = ""
    if "test" not in sources and not held_out:
        if "train" in sources:
            solution = "; or add --test-fraction 0.1 for a part of the training images"
        elif not sources and {("", kind) for kind in _KINDS} <= found.keys():
            solution = "; nothing says which images are to test with: add --test-fraction 0.1"
        sources = {"train": "train", **sources, "test": "test"}
    missing = [
        f"{f'{split}_' if split else ''}{kind}.npy"
        for split in sources.values()
        for kind in _KINDS
        if (split, kind) not in found
    ]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} missing; an .npz needs the arrays train_images, train_labels, "
            f"test_images, test_labels{solution}"
        )
    return sources


def load_array(name: str, data: bytes) -> np.ndarray:
    """Return a read-only array over the bytes of an ``.npy`` file. Python objects are refused."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # numpy warns about headers of Python 2
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which could run code")
        # numpy's own reader would allocate first what the header claims.
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("its size is not what its header says")
        flat = np.frombuffer(data, dtype, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except _MALFORMED as error:
        raise UsageError(
            f"{name} cannot be read ({reason(error)}); save plain arrays with numpy.savez"
        ) from error


def make_split(
    split: str,
    images: np.ndarray,
    labels: np.ndarray,
    resize: str | None = None,
    progress: Progress = lambda *_: None,
) -> Split:
    """Return arrays, of the shapes and dtypes in ``read``, as tensors.

    ``split`` is "train", "valid" or "test", for messages.
    """
    images = _to_rgb(split, images, resize, progress)
    if labels.dtype.kind not in "iu":
        kind = one_line(labels.dtype)
        raise UsageError(f"the {split} labels are {kind}; they must be whole numbers")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    # A copy, because the bytes below are read-only.
    images = np.array(images.transpose(0, 3, 1, 2), order="C")
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _to_rgb(split: str, array: np.ndarray, resize: str | None, progress: Progress) -> np.ndarray:
    """uint8 [N, 32, 32, 3]."""
    what = f"the {_ADJECTIVES[split]} images are {one_line(array.dtype)} {list(array.shape)}"
    if array.dtype != np.uint8:
        raise UsageError(
            f"{what}; they must be uint8, 0 to 255; convert them, such as by "
            "numpy.rint(255 * images).astype('uint8') where they lie between 0 and 1"
        )
    array = _channels_last(array)
    if array.ndim != 4 or array.shape[3] not in _CHANNELS or 0 in array.shape[1:]:
        raise UsageError(
            f"{what}; they must be uint8 [N, 3, {SIDE}, {SIDE}] or uint8 [N, {SIDE}, {SIDE}, 3], "
            "or [N, H, W] with 1, 3 or 4 channels in the second or last place; reshape them"
        )
    is_small, channels = array.shape[1:3] == (SIDE, SIDE), array.shape[3]
    if not is_small and resize is None:
        solution = "so add --resize crop or --resize stretch"
        raise UsageError(f"{what}, and every image must be {SIDE}x{SIDE}, {solution}")
    if is_small and channels != 4:
        return np.broadcast_to(array, (*array.shape[:3], 3))
    from PIL import Image

    pixels = bytearray()
    for done, image in enumerate(array, 1):
        image = np.ascontiguousarray(image[..., 0] if channels == 1 else image)
        pixels += image_files.fit(Image.fromarray(image), resize or "crop")
        progress("resizing images", done, len(array))
    return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Images in any accepted shape as [N, H, W, C]; other arrays unchanged."""
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[3] not in _CHANNELS and array.shape[1] in _CHANNELS:
        return array.transpose(0, 2, 3, 1)
    return array


def changes(arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Count the images with each change, as ``image_files.changes`` does for files."""
    on_white = resized = grey = 0
    for array in map(_channels_last, arrays):
        count, channels = len(array), array.shape[3]
        resized += count * (array.shape[1:3] != (SIDE, SIDE))
        grey += count * (channels == 1)
        on_white += int((array[..., 3] < 255).any((1, 2)).sum()) if channels == 4 else 0
    converted = {"L": grey} if grey else {}
    counts = {"on_white": on_white, "resized": resized, "converted": converted}
    return {name: count for name, count in counts.items() if count}


def class_names(names: np.ndarray | None, labels: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Class names from an array of text; without one, "0", "1", ... up to the largest label."""
    if names is None:
        count = 1 + max(0, *(int(part.max()) for part in labels if part.numel()), 0)
        if count > _MOST_CLASSES:
            raise UsageError(f"there is a label {count - 1}; labels number the classes from 0")
        return tuple(map(str, range(count)))
    if names.dtype.kind not in "US" or names.ndim != 1:
        kind = f"{one_line(names.dtype)} {list(names.shape)}"
        raise UsageError(f"classes is {kind}; it must be a list of text")
    if names.dtype.kind == "S":
        return tuple(name.decode("utf-8", "replace") for name in names.tolist())
    try:  # numpy accepts code points that Python cannot encode
        names.tobytes().decode("utf-32-be" if names.dtype.str[0] == ">" else "utf-32-le")
    except ValueError as error:
        raise UsageError("classes holds letters that are none; save it anew as text") from error
    return tuple(names.tolist())


# Test sets ----------------------------------------------------------------------------------------

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    *("snow", "frost", "fog", "brightness", "spatter"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
)
"""Corruptions in CIFAR-10-C and CIFAR-100-C."""
SEVERITIES = 5
LABELS_FILE, CLASSES_FILE = "labels.npy", "classes.npy"
_DATA = re.compile(r"(.+)_(data|images)\.npy")


class ArrayPair(NamedTuple):
    """The paths of the arrays of a test set."""

    images: str
    labels: str
    corruption: str  # "" if it is not corrupted


def labels_of(name: str) -> str:
    """Return the name of the file with the labels of the images in file ``name``.

    >>> from fcifar.data.readers.npz import labels_of
    >>> labels_of("fog.npy"), labels_of("cifar10.1_v6_data.npy")
    ('labels.npy', 'cifar10.1_v6_labels.npy')
    """
    match = _DATA.fullmatch(name)
    return f"{match[1]}_{LABELS_FILE}" if match else LABELS_FILE


def is_test_set(paths: Collection[str]) -> bool:
    """Whether there are images beside labels, and no name that says which split they are."""
    if any((parse(path) or ("", ""))[1] == "images" for path in paths):
        return False
    names = {PurePosixPath(path).stem for path in paths if path.endswith(".npy")}
    return bool(_find(paths)) or not names.isdisjoint(CORRUPTIONS)


def read_test_set(
    files: Mapping[str, bytes], source: str, options: ImportOptions
) -> tuple[Content, str]:
    """Return a test set, and a name for it, such as ``cifar10-c-fog-3``.

    Class names are those in ``classes.npy``, if there is one; those of CIFAR-10 or CIFAR-100 if the
    file or ``source`` is named after it and the number of classes fits; else "0", "1", ...

    ``corruption`` and ``severity`` of the options are used.
    """
    found = _choose(files, options.corruption)
    images, labels = (load_array(path, files[path]) for path in found[:2])
    if (severity := options.severity) is not None:
        if not found.corruption or len(images) % SEVERITIES or len(images) != len(labels):
            raise UsageError(
                f"--severity does not go with {one_line(found.images)}, whose images are not "
                f"{SEVERITIES} severities one after the other; leave it out"
            )
        images, labels = (np.split(part, SEVERITIES)[severity - 1] for part in (images, labels))
    test = make_split("test", images, labels)
    preparation = {"images": len(test.images), **changes([images])}
    if found.corruption and (severity is not None or len(images) % SEVERITIES == 0):
        preparation |= blocks([found.corruption], severity)
    is_known = found.corruption in CORRUPTIONS
    classes, family = classes_of(files, test.labels, f"{source} {found.images}", is_known=is_known)
    if found.corruption:
        name = f"{family}-c-{found.corruption}{'' if severity is None else f'-{severity}'}"
    else:
        match = _DATA.fullmatch(PurePosixPath(found.images).name)
        name = re.sub(r"[._]", "-", match[1] if match else "")
    return Content(EMPTY, test, classes, preparation=preparation), name


def blocks(names: Sequence[str], severity: int | None) -> dict[str, Any]:
    """Describe the rows of corrupted images, for ``Content.preparation``."""
    severities = [*range(1, SEVERITIES + 1)] if severity is None else [severity]
    return {"corruptions": [*names], "severities": severities}


def classes_of(
    files: Mapping[str, Any], labels: torch.Tensor, called: str, *, is_known: bool
) -> tuple[tuple[str, ...], str]:
    """Return the class names of a test set, and the data set that it is of, else "corrupted".

    Args:
        files: with ``classes.npy``, if there is one.
        labels: of the images.
        called: names that may tell that it is of CIFAR.
        is_known: whether the images are of CIFAR by other signs.
    """
    names = load_array(CLASSES_FILE, files[CLASSES_FILE]) if CLASSES_FILE in files else None
    classes = class_names(names, [labels])
    if names is None and (is_known or "cifar" in called.lower()):
        for known, its_classes in (("cifar10", cifar.CLASSES), ("cifar100", cifar.CLASSES_100)):
            if len(classes) == len(its_classes):
                return its_classes, known
    return classes, "corrupted"


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


def without_labels(path: str) -> UsageError:
    """Return the error for a file of images without labels."""
    return UsageError(
        f"{one_line(path)} has no labels beside it: {labels_of(PurePosixPath(path).name)} is "
        "missing; give the .npy file of the images, with its labels in the same folder"
    )


def _find(paths: Collection[str]) -> list[ArrayPair]:
    """Every file of images with labels beside it."""
    found = []
    for path in sorted(paths):
        name = PurePosixPath(path)
        labels = str(name.with_name(labels_of(name.name)))
        if path.endswith(".npy") and path != labels and labels in paths and not parse(path):
            found.append(ArrayPair(path, labels, "" if _DATA.fullmatch(name.name) else name.stem))
    return found


def _choose(paths: Collection[str], corruption: str | None) -> ArrayPair:
    found = _find(paths)
    if not found:
        raise without_labels(next(path for path in paths if path.endswith(".npy")))
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
