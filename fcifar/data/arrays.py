"""Arrays in an ``.npz``: ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

``classes`` may be there too; without it, classes are called "0", "1", ...
"""

import io
import math
import tokenize
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from fcifar.data import pictures
from fcifar.data.dataset import SIDE, Content, Split
from fcifar.errors import UserError, one_line, reason

REQUIRED = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
CLASSES = "classes.npy"
_MOST_CLASSES = 100_000  # a larger label is a mistake, and would make that many names


# What numpy raises for a header that is not one: it is parsed as a Python literal.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def is_layout(files: Mapping[str, bytes]) -> bool:
    """Whether there is any array."""
    return any(path.endswith(".npy") for path in files)


def read(files: Mapping[str, bytes], resize: str | None = None) -> Content:
    """Images are uint8, channels first or last; labels are whole numbers, [N] or [N, 1].

    Args:
        resize: how images of other sizes become 32x32: a key of ``pictures.FITS``. Grey ones,
            [N, H, W], may be there then, too.

    Raises:
        UserError: an array is missing, damaged, or of another type or shape.
    """
    if missing := [name for name in REQUIRED if name not in files]:
        raise UserError(
            f"{', '.join(missing)} missing; an .npz needs the arrays "
            f"{', '.join(name.removesuffix('.npy') for name in REQUIRED)}"
        )
    arrays = {name: load_array(name, files[name]) for name in (*REQUIRED, CLASSES) if name in files}
    train_images, train_labels, test_images, test_labels = (arrays[name] for name in REQUIRED)
    train = Split(_images(train_images, resize), _labels("train", train_labels))
    test = Split(_images(test_images, resize), _labels("test", test_labels))
    return Content(train, test, _classes(arrays.get(CLASSES), train.labels, test.labels))


def load_array(name: str, data: bytes) -> np.ndarray:
    """A read-only array over the bytes of an ``.npy`` file. Arrays of objects are refused.

    Raises:
        UserError: it is damaged, or needs pickle.
    """
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Python 2 wrote, for one
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which could run code")
        # numpy's own reader would allocate what the header claims before it looks.
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("its size is not what its header says")
        flat = np.frombuffer(data, dtype, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except _MALFORMED as error:
        raise UserError(
            f"{name} cannot be read ({reason(error)}); save plain arrays with numpy.savez"
        ) from error


def _images(array: np.ndarray, resize: str | None) -> torch.Tensor:
    if array.dtype != np.uint8:
        raise UserError(
            f"the images are {one_line(array.dtype)} {list(array.shape)}; "
            "they must be uint8, 0 to 255"
        )
    if resize is not None:
        array = _resized(array, resize)
    channels_last = array.ndim == 4 and array.shape[1:] == (SIDE, SIDE, 3)
    # A copy, for the bytes below are read-only, and in one order of memory.
    return torch.from_numpy(
        np.array(array.transpose(0, 3, 1, 2) if channels_last else array, order="C")
    )


def _resized(array: np.ndarray, resize: str) -> np.ndarray:
    """[N, 32, 32, 3] of [N, H, W], [N, H, W, 3] or [N, 3, H, W]."""
    from PIL import Image

    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if 0 in array.shape or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
        raise UserError(
            f"the images are {list(array.shape)}; to be resized, they must be [N, H, W], "
            "[N, H, W, 3] or [N, 3, H, W]"
        )
    rows = [pictures.fit(Image.fromarray(np.ascontiguousarray(image)), resize) for image in array]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, SIDE, SIDE, 3)


def _labels(split: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise UserError(
            f"the {split} labels are {one_line(array.dtype)}; they must be whole numbers"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return torch.from_numpy(array.astype(np.int64))


def _classes(
    names: np.ndarray | None, train_labels: torch.Tensor, test_labels: torch.Tensor
) -> tuple[str, ...]:
    if names is not None:
        if names.dtype.kind not in "US" or names.ndim != 1:
            raise UserError(
                f"classes is {one_line(names.dtype)} {list(names.shape)}; it must be a list of text"
            )
        if names.dtype.kind == "U":
            _check_letters(names)
        return tuple(
            name.decode("utf-8", "replace") if isinstance(name, bytes) else name
            for name in names.tolist()
        )
    highest = [int(labels.max()) for labels in (train_labels, test_labels) if labels.numel()]
    count = 1 + max(0, *highest)
    if count > _MOST_CLASSES:
        raise UserError(f"there is a label {count - 1}; labels number the classes from 0")
    return tuple(str(i) for i in range(count))


def _check_letters(names: np.ndarray) -> None:
    """Refuse what is no text: numpy would make some of any numbers, and Python cannot bear it."""
    try:
        names.tobytes().decode("utf-32-be" if names.dtype.str[0] == ">" else "utf-32-le")
    except ValueError as error:
        raise UserError("classes holds letters that are none; save it anew as text") from error
