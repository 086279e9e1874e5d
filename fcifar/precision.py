"""Dtypes of parameters, computation and results."""

from typing import NamedTuple

import torch

from fcifar import tree
from fcifar.tree import Tree


class Policy(NamedTuple):
    """Dtypes of a step.

    param: parameters, optimizer state and batch-norm statistics.
    compute: images and parameters as the model sees them.
    output: logits as the loss sees them.
    """

    param: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    output: torch.dtype = torch.float32


FP32 = Policy()
BF16 = Policy(compute=torch.bfloat16)
FP64 = Policy(torch.float64, torch.float64, torch.float64)

POLICIES = {"fp32": FP32, "bf16": BF16}


def cast(values: Tree, dtype: torch.dtype) -> Tree:
    """Cast floating-point leaves to ``dtype``; leave integers and booleans unchanged.

    >>> fcifar.precision.cast({"w": torch.ones(1), "n": torch.ones(1).long()}, torch.float64)
    {'w': tensor([1.], dtype=torch.float64), 'n': tensor([1])}
    """
    return tree.map(lambda x: x.to(dtype) if x.is_floating_point() else x, values)
