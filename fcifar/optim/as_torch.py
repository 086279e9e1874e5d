"""Optimizers as ``torch.optim.Optimizer``, for plain training loops.

    optimizer = as_torch(muon_and_sgd(0.05), net.named_parameters())
    for images, labels in loader:
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()

The object has state, as ``torch.optim`` requires; the other modules of this folder have none.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fcifar import tree
from fcifar.errors import shown
from fcifar.optim.base import Optimizer, apply_updates

STATE = "fcifar"  # the entry of a state_dict that has our state


def as_torch(
    optimizer: Optimizer | Callable[[float], Optimizer],
    params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    lr: float | None = None,
) -> "TorchOptimizer":
    """Return a ``torch.optim.Optimizer`` with the updates of ``optimizer``.

    Its steps equal ``optimizer.update`` and ``apply_updates`` on a dict of the parameters by name,
    bit for bit. Functions of several parameters, such as Muon's batched products, see all that have
    the same label at once.

    Args:
        optimizer: an optimizer; or, with ``lr``, a function of the learning rate that returns one,
            such as ``muon_and_sgd`` or ``lambda lr: sgd(lr, momentum=0.9)``, which must have the
            same state for any rate.
        params: ``net.named_parameters()``, or ``net.parameters()``, whose names are then their
            numbers. Parameters that do not require gradients are left out.
        lr: learning rate. It is ``param_groups[0]["lr"]``, which ``torch.optim.lr_scheduler`` and
            other code may change between steps. Without it, the learning rate is that of
            ``optimizer``, such as a schedule, and ``lr_scheduler`` raises an error.

    Raises:
        ValueError: no parameter requires gradients, or a name or parameter is there twice.
        TypeError: ``optimizer`` does not fit ``lr``.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = fcifar.optim.as_torch(lambda lr: fcifar.optim.sgd(lr, 0.9), [w], lr=0.5)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> w.data
    tensor([0., 0.])
    """
    if isinstance(optimizer, Optimizer) != (lr is None):
        raise TypeError(
            "as_torch needs an Optimizer, or a function of the learning rate together with lr; "
            f"{shown(type(optimizer).__name__)} and lr={lr} were given"
        )
    named = _named(params)
    return TorchOptimizer(optimizer, named, lr)


class TorchOptimizer(torch.optim.Optimizer):
    """What ``as_torch`` returns. It has one group of parameters."""

    def __init__(
        self, optimizer: Optimizer | Callable[[float], Optimizer], named: Any, lr: float | None
    ) -> None:
        super().__init__(list(named.values()), {} if lr is None else {"lr": lr})
        self.param_groups[0] = _Group(self.param_groups[0])
        self._make, self._named = optimizer, dict(named)
        self._opt_state = self._optimizer().init(self._values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step, with the gradients in ``grad``; one that is None counts as zeros.

        Args:
            closure: called first, with gradients enabled; computes them and returns the loss.

        Returns:
            The result of ``closure``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = self._values()
        grads = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach()
            for name, p in self._named.items()
        }
        updates, self._opt_state = self._optimizer().update(grads, self._opt_state, params)
        for name, value in apply_updates(params, updates).items():
            self._named[name].copy_(value)
        return loss

    @torch.no_grad()
    def eval_params(self) -> dict[str, Tensor]:
        """Return copies of the parameters to evaluate and to save, by name.

        They differ from the parameters for ``schedule_free``. Evaluate them with
        ``torch.func.functional_call(net, optimizer.eval_params(), (images,))``.
        """
        value = self._optimizer().value(self._values(), self._opt_state)
        return {name: leaf.clone() for name, leaf in value.items()}

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the state as tensors by name, and the group without its parameters."""
        group = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        group["params"] = list(range(len(self._named)))
        return {STATE: tree.named_leaves(self._opt_state), "state": {}, "param_groups": [group]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Load a state that ``state_dict`` returned, onto the devices of the parameters.

        Raises:
            ValueError: it is that of another optimizer or of other parameters.
        """
        leaves, loaded = tree.named_leaves(self._opt_state), state_dict.get(STATE)
        if not isinstance(loaded, Mapping) or set(loaded) != set(leaves):
            raise ValueError(
                "the state_dict is that of another optimizer; load it into one that was made by "
                "the same as_torch call"
            )
        for name, leaf in leaves.items():
            if (loaded[name].shape, loaded[name].dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(
                    f"the state_dict has {name} as {loaded[name].dtype} "
                    f"{list(loaded[name].shape)}, and the optimizer {leaf.dtype} "
                    f"{list(leaf.shape)}; load it for parameters of the same shapes and dtypes"
                )
        _, unflatten = tree.flatten(self._opt_state)
        self._opt_state = unflatten(
            [loaded[name].to(leaf.device, copy=True) for name, leaf in leaves.items()]
        )
        saved = {name: v for name, v in state_dict["param_groups"][0].items() if name != "params"}
        self.param_groups[0].update(saved)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the first group; the parameters of an optimizer are given once, to ``as_torch``."""
        if self.param_groups:
            raise ValueError(
                "as_torch has one group of parameters; give all of them at once, and use "
                "optim.multi_transform for groups"
            )
        super().add_param_group(param_group)

    def _optimizer(self) -> Optimizer:
        if isinstance(self._make, Optimizer):
            return self._make
        return self._make(self.param_groups[0]["lr"])

    def _values(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._named.items()}


class _Group(dict[str, Any]):
    """A group of parameters whose learning rate, if it has none, is said to be the optimizer's."""

    def __missing__(self, key: str) -> Any:
        if key == "lr":
            raise KeyError(
                "this optimizer has its own learning rate; for lr_scheduler, give as_torch a "
                "function of the learning rate and lr"
            )
        raise KeyError(key)


def _named(params: Iterable[Any]) -> dict[str, Tensor]:
    """Return the parameters by name, those without a name by number."""
    named: dict[str, Tensor] = {}
    for i, item in enumerate(params):
        name, value = item if isinstance(item, tuple) else (str(i), item)
        if name in named:
            raise ValueError(f"as_torch was given two parameters of the name {shown(name)}")
        named[name] = value
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if not trained:
        raise ValueError(
            "as_torch needs parameters that require gradients; give net.named_parameters()"
        )
    return trained
