"""The data sets that can be fetched by name, through torchvision. Nothing here needs torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fcifar.errors import UsageError, did_you_mean, shown

DEFAULT = "cifar10"
_BY_FLAG = ({"train": True}, {"train": False})
_BY_NAME = ({"split": "train"}, {"split": "test"})


class Known(NamedTuple):
    """A published data set, and torchvision's class for it."""

    name: str
    torchvision: str  # the class in torchvision.datasets
    summary: str
    images: str  # as they are published
    bytes: int  # to download, for the progress bar alone
    labels: str = ""  # of CIFAR-100: fine or coarse
    splits: tuple[Mapping[str, Any], Mapping[str, Any]] = _BY_FLAG  # the class's arguments
    needs: str = ""  # a package that reads its files, and an extra of ours


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        known.name: known
        for known in (
            Known("cifar10", "CIFAR10", "10 animals and vehicles", "60,000, 32x32", 170_498_071),
            Known(
                "cifar100", "CIFAR100", "100 kinds of things", "60,000, 32x32", 169_001_437, "fine"
            ),
            Known(
                "cifar100-coarse",
                "CIFAR100",
                "the same images in 20 groups",
                "60,000, 32x32",
                169_001_437,
                "coarse",
            ),
            Known("mnist", "MNIST", "handwritten digits", "70,000, 28x28 grey", 11_594_722),
            Known("fashion-mnist", "FashionMNIST", "clothes", "70,000, 28x28 grey", 30_878_645),
            Known("kmnist", "KMNIST", "Japanese characters", "70,000, 28x28 grey", 21_240_888),
            Known(
                "svhn",
                "SVHN",
                "digits of house numbers",
                "99,289, 32x32",
                246_316_178,
                splits=_BY_NAME,
                needs="scipy",
            ),
            Known(
                "stl10",
                "STL10",
                "10 animals and vehicles",
                "13,000, 96x96",
                2_640_397_119,
                splits=_BY_NAME,
            ),
        )
    }
)
"""By the name that a set gets in the store. CIFAR comes as it is, the others as 32x32 RGB."""


def get(name: str) -> Known:
    """The entry of ``KNOWN``.

    Raises:
        UsageError: there is none.
    """
    if name not in KNOWN:
        raise UsageError(
            f"no data set {shown(name)} can be fetched; there is {', '.join(KNOWN)}; another is "
            f"prepared from files with fcifar data import{did_you_mean(name, KNOWN)}"
        )
    return KNOWN[name]
