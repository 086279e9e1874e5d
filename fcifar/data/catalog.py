"""The data sets that can be fetched by name, through torchvision. Must not import torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fcifar.errors import UsageError, did_you_mean, shown

DEFAULT = "cifar10"


class Known(NamedTuple):
    """A published data set, and torchvision's class for it."""

    name: str
    torchvision: str  # the class in torchvision.datasets
    summary: str
    images: str  # number and size, as published
    bytes: int  # size of the download, for the progress bar only
    labels: str = ""  # of CIFAR-100: fine or coarse
    # Arguments of the class for the training and the test split.
    splits: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
    needs: str = ""  # a package that reads the files, and the extra of fcifar that installs it


_BY_NAME = ({"split": "train"}, {"split": "test"})
_CIFAR, _GREY = "60,000, 32x32", "70,000, 28x28 grey"
_KNOWN = (
    Known("cifar10", "CIFAR10", "10 animals and vehicles", _CIFAR, 170_498_071),
    Known("cifar100", "CIFAR100", "100 kinds of things", _CIFAR, 169_001_437, "fine"),
    Known(
        "cifar100-coarse", "CIFAR100", "the same images in 20 groups", _CIFAR, 169_001_437, "coarse"
    ),
    Known("mnist", "MNIST", "handwritten digits", _GREY, 11_594_722),
    Known("fashion-mnist", "FashionMNIST", "clothes", _GREY, 30_878_645),
    Known("kmnist", "KMNIST", "Japanese characters", _GREY, 21_240_888),
    Known(
        *("svhn", "SVHN", "digits of house numbers", "99,289, 32x32", 246_316_178),
        splits=_BY_NAME,
        needs="scipy",
    ),
    Known(
        *("stl10", "STL10", "10 animals and vehicles", "13,000, 96x96", 2_640_397_119),
        splits=_BY_NAME,
    ),
)
KNOWN: Mapping[str, Known] = MappingProxyType({known.name: known for known in _KNOWN})
"""By name in the store. CIFAR is stored unchanged, other data sets as 32x32 RGB."""


def get(name: str) -> Known:
    """Return an entry of ``KNOWN``, or raise a UsageError with the names of all."""
    if name not in KNOWN:
        raise UsageError(
            f"no data set {shown(name)} can be fetched; there is {', '.join(KNOWN)}; "
            f"prepare others from files with fcifar data import{did_you_mean(name, KNOWN)}"
        )
    return KNOWN[name]
