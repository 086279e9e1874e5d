"""Whether a module is a function of what it is given: it is called once, without any values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import random
from fcifar.errors import reason
from fcifar.random import Key

SIZE = 32  # pixels a side


class _Watched(TorchDispatchMode):
    """While it is entered, draws from a generator and writes to some tensors are refused."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {_storage(tensor): name for name, tensor in tensors.items()}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"it draws from torch's global generator by {name}, which has no keyed form here"
            )
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, Tensor) and _storage(value) in self.names:
                raise ValueError(
                    f"it changes {self.names[_storage(value)]} in place; only batch norm's "
                    "statistics may change"
                )
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def check_forward(
    module: nn.Module,
    call: Callable[[Tensor, Key | None], Any],
    tensors: Mapping[str, Tensor],
    counters: set[str],
    num_classes: int,
    *,
    train: bool,
) -> None:
    """Call a module on the meta device, and make sure that it is pure and gives logits.

    Args:
        module: what is called; none of its attributes may be another after it.
        call: ``(images, key) -> logits``.
        tensors: what ``call`` gives the module by name.
        counters: names of those among them that it may write to.

    Raises:
        ValueError: it is not.
    """
    when = "in training" if train else "in evaluation"
    images = torch.empty(2, 3, SIZE, SIZE, device="meta")
    key = random.key(0, device="meta") if train else None
    given, held = dict(tensors), _attributes(module)
    fixed = {name: value for name, value in given.items() if name not in counters}
    try:
        with torch.device("meta"), _Watched(fixed | {"the images": images}):
            logits = call(images, key)
    except Exception as error:
        values = "; it reads a tensor's values, which nothing can map or compile"
        raise ValueError(
            f"images of {SIZE}x{SIZE} pixels do not go through the module {when}: "
            f"{reason(error)}{values if 'meta' in str(error) else ''}"
        ) from error
    for name, value in given.items():
        if tensors[name] is not value:
            raise ValueError(
                f"forward changes {name} {when}; only batch norm's statistics may change"
            )
    if changed := _differing(held, _attributes(module)):
        raise ValueError(
            f"forward changes {changed} {when}, which a function cannot; keep nothing between calls"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(f"the module gives a {type(logits).__name__} {when}; it must give logits")
    if logits.shape != (2, num_classes) or not logits.is_floating_point():
        raise ValueError(
            f"the module gives {list(logits.shape)} for two images; it must give logits "
            f"[2, {num_classes}], so let the factory take num_classes"
        )


def _attributes(module: nn.Module) -> dict[str, tuple[Any, list[Any]]]:
    """Every attribute of every part of a module, and what is in those that hold several."""
    return {
        f"{place}.{name}".removeprefix("."): (value, _inside(value))
        for place, part in module.named_modules()
        for name, value in vars(part).items()
    }


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def _differing(
    before: dict[str, tuple[Any, list[Any]]], after: dict[str, tuple[Any, list[Any]]]
) -> str:
    """The first attribute that is another object, or holds other ones; empty for none."""
    for name in before | after:
        if name not in before or name not in after:
            return name
        (a, of_a), (b, of_b) = before[name], after[name]
        if (
            a is not b
            or len(of_a) != len(of_b)
            or any(x is not y for x, y in zip(of_a, of_b, strict=True))
        ):
            return name
    return ""
