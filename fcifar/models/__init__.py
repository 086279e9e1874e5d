"""Architectures, one family per file, each a ``Model(init, apply)``.

Recipes and the command line choose from ``MODELS``, functions that make models, by name.
``register`` adds an entry; ``from_module`` makes a ``Model`` of any ``nn.Module``.
"""

from fcifar.models.base import (
    LARGEST_MODEL,
    Apply,
    Buffers,
    Model,
    Params,
    Variables,
    from_normed_skeleton,
    from_skeleton,
    mixes_examples,
    takes_images,
)
from fcifar.models.conv3 import conv3
from fcifar.models.freeze import freeze
from fcifar.models.from_module import from_module
from fcifar.models.from_module.init import takes
from fcifar.models.lenet import lenet
from fcifar.models.mixer import mlp_mixer
from fcifar.models.preact_resnet import preact_resnet18, wrn
from fcifar.models.registry import MODELS, from_factory, register
from fcifar.models.resnet import resnet18
from fcifar.models.resnet_cifar import (
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
    resnet_cifar,
)
from fcifar.models.speednet import speednet
from fcifar.models.vit import vit_tiny

__all__ = [
    "LARGEST_MODEL",
    "MODELS",
    "Apply",
    "Buffers",
    "Model",
    "Params",
    "Variables",
    "conv3",
    "freeze",
    "from_factory",
    "from_module",
    "from_normed_skeleton",
    "from_skeleton",
    "lenet",
    "mixes_examples",
    "mlp_mixer",
    "preact_resnet18",
    "register",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet_cifar",
    "speednet",
    "takes",
    "takes_images",
    "vit_tiny",
    "wrn",
]
