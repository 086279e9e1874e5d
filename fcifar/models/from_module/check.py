"""Check that a module is a pure function, by calling it.

First without values, on the meta device, under a dispatch mode that sees each operation and its
operands; then on two small images, forward and backward, twice and under ``vmap``.
"""

import contextlib
import traceback
import types
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import precision, random, tree
from fcifar.errors import located
from fcifar.models.base import Apply, Variables
from fcifar.models.from_module import init
from fcifar.models.from_module.init import arguments_of, spread, tensors_in
from fcifar.random import Key

SIZE = 32  # pixels a side
_TOLERANCE = 1e-3  # relative to the norm of a tensor, in single precision
_LARGE = 20_000_000  # parameters
_DEPTH = 5  # of lists, dicts and objects that are searched


class Cache(NamedTuple):
    """A place that ``forward`` fills for its next call."""

    owner: Any  # a part of the module, or a dict that it holds
    name: str  # of the part's attribute; empty for a dict
    before: Any  # the value of the attribute or dict when it is empty


_MISSING = object()  # an attribute that did not exist


def empty_caches(caches: Sequence[Cache]) -> None:
    """Restore the values before ``forward``."""
    for owner, name, before in caches:
        if not name:
            owner.clear()
            owner.update(before)
        elif before is not _MISSING:
            setattr(owner, name, before)
        elif hasattr(owner, name):
            delattr(owner, name)


# Without values ----------------------------------------------------------------------------------


class _Watched(TorchDispatchMode):
    """While this mode is entered, operations take only tensors that were given or made meanwhile.

    They write only to those with names in ``writable``. ``describe`` is the message about tensors
    from elsewhere.
    """

    def __init__(
        self, given: Mapping[str, Tensor], writable: set[str], describe: Callable[[Tensor], str]
    ) -> None:
        super().__init__()
        self.fixed = {_storage(t): name for name, t in given.items() if name not in writable}
        self.describe = describe
        self.known: dict[int, Tensor] = {}  # kept alive, so that no other storage gets their number
        self.add([*given.values()])

    def add(self, result: Any) -> None:
        for tensor in tensors_in(result):
            self.known.setdefault(_storage(tensor), tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError(
                f"it draws from torch's global generator by {name}, which has no keyed form here"
            )
        if name == "lift_fresh":  # of torch.tensor
            self.add(args)
        given = arguments_of(func, args, kwargs)
        for tensor in tensors_in([*given.values()]):
            if _storage(tensor) not in self.known:
                raise ValueError(self.describe(tensor))
        written = [given.get(a.name) for a in func._schema.arguments if a.is_write]
        for tensor in tensors_in(written):
            if _storage(tensor) in self.fixed:
                raise ValueError(
                    f"it changes {self.fixed[_storage(tensor)]} in place; only the statistics of "
                    "batch norm and the vectors of spectral norm may change"
                )
        result = func(*args, **kwargs)
        self.add(result)
        return result


class _Constructors(TorchFunctionMode):
    """Adds tensors that are made without an operation, such as ``torch.as_tensor``'s."""

    def __init__(self, watched: _Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(True for _ in tensors_in([*args, *(kwargs or {}).values()])):
            self.watched.add(result)
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def check_forward(
    module: nn.Module,
    call: Callable[[Tensor, Key | None], Any],
    tensors: Mapping[str, Tensor],
    moving: set[str],
    num_classes: int,
    *,
    train: bool,
) -> tuple[Cache, ...]:
    """Check that a call on the meta device is pure and returns logits; return the emptied caches.

    Args:
        call: ``(images, key) -> logits``, with ``tensors``, where it puts what the module assigns.
        moving: names of tensors that may change.
    """
    when = "in training" if train else "in evaluation"
    images = torch.empty(2, 3, SIZE, SIZE, device="meta")
    key = random.key(0, device="meta") if train else None
    given, before = dict(tensors), _attributes(module)
    seen = given | {"the images": images} | ({} if key is None else {"the key": key})
    watched = _Watched(seen, moving, lambda tensor: _describe(module, tensor))
    try:
        with torch.device("meta"), watched, _Constructors(watched):
            logits = call(images, key)
    except (Exception, SystemExit) as error:
        values = "; it reads a tensor's values, which cannot be mapped or compiled"
        raise ValueError(
            f"images of {SIZE}x{SIZE} pixels do not go through the module {when}: "
            f"{located(error)}{values if 'meta' in str(error) else ''}"
        ) from error
    plain = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    for name, value in given.items():
        # A plain attribute with a tensor of another shape is a table for the size of the images.
        is_table = name in plain and tensors[name].shape != value.shape
        if tensors[name] is not value and name not in moving and not is_table:
            raise ValueError(
                f"forward changes {name} {when}; only the statistics of batch norm and the vectors "
                "of spectral norm may change"
            )
    caches = _find_caches(before, _attributes(module), when)
    empty_caches(caches)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the module gives a {type(logits).__name__} {when}; it must give logits")
    if logits.shape != (2, num_classes) or not logits.is_floating_point():
        raise ValueError(
            f"the module gives {list(logits.shape)} for two images; it must give logits "
            f"[2, {num_classes}], so let the factory take num_classes"
        )
    return caches


class _Attribute(NamedTuple):
    part: nn.Module
    name: str
    value: Any
    items: Any  # a copy of a dict, list or set


def _attributes(module: nn.Module) -> dict[str, _Attribute]:
    """Every attribute of every part of a module, including registered tensors and parts."""
    found = {}
    for path, part in module.named_modules():
        attributes = dict(vars(part))
        for registry in init.REGISTRIES:
            attributes |= attributes.pop(registry)
        for name, value in attributes.items():
            items = value.copy() if isinstance(value, dict | list | set) else None
            found[f"{path}.{name}".removeprefix(".")] = _Attribute(part, name, value, items)
    return found


def _find_caches(
    before: dict[str, _Attribute], after: dict[str, _Attribute], when: str
) -> tuple[Cache, ...]:
    """Attributes that were None or missing and hold tensors now, and dicts with new tensors.

    Other changes raise a ValueError.
    """
    caches = []
    for name in before | after:
        old, new = before.get(name), after.get(name)
        if new is not None and (old is None or old.value is None) and _holds_tensors(new.value):
            caches.append(Cache(new.part, new.name, _MISSING if old is None else None))
            continue
        if old is not None and new is not None and old.value is new.value:
            if _identities(old.items) == _identities(new.items):
                continue
            if isinstance(old.items, dict) and _only_adds_tensors(old.items, new.items):
                caches.append(Cache(old.value, "", old.items))
                continue
        raise ValueError(
            f"forward changes {name} {when}, which a pure function cannot; keep nothing between "
            "calls"
        )
    return tuple(caches)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_holds_tensors, value))
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def _only_adds_tensors(old: dict[Any, Any], new: dict[Any, Any]) -> bool:
    added = [value for key, value in new.items() if not (key in old and old[key] is value)]
    return len(new) - len(added) == len(old) and all(map(_holds_tensors, added))


def _identities(items: Any) -> Any:
    """What tells whether a dict, list or set holds the same objects."""
    if isinstance(items, dict):
        return [(key, id(value)) for key, value in items.items()]
    return {id(x) for x in items} if isinstance(items, set) else [id(x) for x in items or ()]


# Tensors from elsewhere --------------------------------------------------------------------------


def _describe(module: nn.Module, tensor: Tensor) -> str:
    """The message about an operand that was neither given nor made in the call."""
    storage = _storage(tensor)
    for path, found, container in _hidden(module):
        if not isinstance(found, nn.Module):
            if _storage(found) == storage:
                return (
                    f"it uses {path}, a tensor held in a {container}, which cannot be passed to a "
                    "function; hold it as nn.Parameter or by register_buffer, and use self.NAME"
                )
            continue
        named = (*found.named_parameters(), *found.named_buffers())
        for name in (name for name, value in named if _storage(value) == storage):
            if type(found) is type(module):
                return (
                    f"it uses {path}.{name} of a module that was made before; make the module in "
                    "the factory, so that its functions use the module itself"
                )
            return (
                f"it uses {path}.{name}, which is neither trained nor saved, because its layer is "
                f"held in a {container}; hold layers in nn.ModuleList or nn.ModuleDict, or as "
                "attributes"
            )
    return (
        f"it uses a tensor {list(tensor.shape)} that is neither the module's own nor made in the "
        "call; make the module in the factory, and hold its tensors by nn.Parameter or "
        "register_buffer"
    )


def _hidden(module: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Modules and tensors in plain attributes, which torch does not register.

    Each with its path and the kind of its container.
    """
    own = {id(part) for part in module.modules()}
    seen: set[int] = set()

    def walk(path: str, value: Any, container: str, depth: int) -> Iterator[tuple[str, Any, str]]:
        if id(value) in own or id(value) in seen or depth > _DEPTH or isinstance(value, type):
            return
        seen.add(id(value))
        if isinstance(value, nn.Module | Tensor):
            yield path, value, container
            return
        kind = f"plain {type(value).__name__}"
        inside: Any = ()
        if isinstance(value, dict):
            inside = [(f"{path}[{key!r}]", inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple | set):
            inside = [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]
        elif closure := getattr(value, "__closure__", None):
            kind = "function"
            for name, cell in zip(value.__code__.co_freevars, closure, strict=True):
                with contextlib.suppress(ValueError):  # an empty cell
                    inside = [*inside, (f"{path}'s {name}", cell.cell_contents)]
        elif hasattr(value, "__dict__") and not isinstance(value, types.ModuleType):
            inside = [(f"{path}.{name}", inner) for name, inner in vars(value).items()]
        for name, inner in inside:
            yield from walk(name, inner, kind, depth + 1)

    for path, *_, value in init.plain_attributes(module):
        yield from walk(path, value, "", 0)


# With values -------------------------------------------------------------------------------------


def check_step(apply: Apply, variables: Variables) -> None:
    """Make one small step with a model, repeat it, and map it by ``vmap``; evaluate two images.

    Raise a ValueError for exceptions, changed arguments, and results that differ by more than
    rounding.
    """
    images = spread(2).normal(0, (2, 3, SIZE, SIZE))
    before = tree.map(torch.clone, (variables, images))
    keys = random.split(random.key(0))

    def step(variables: Variables, images: Tensor, key: Key) -> Any:
        def loss(params: Any) -> tuple[Tensor, Any]:
            own = variables._replace(params=params)
            logits, buffers = apply(own, images, key=key, train=True)
            return logits.float().square().sum(), (logits, buffers)

        return torch.func.grad(loss, has_aux=True)(variables.params)

    def evaluate(variables: Variables, image: Tensor) -> Tensor:
        return apply(variables, image[None], train=False)[0][0]

    # A large model is not copied, so that the check takes no more memory than training does.
    large = sum(value.numel() for value in variables.params.values()) > _LARGE

    def inputs(dtype: torch.dtype, moved: float) -> tuple[Any, Tensor]:
        values, x = precision.cast((variables, images), dtype)
        return values, x + moved * x.flip(-1)

    def two_steps(dtype: torch.dtype, moved: float = 0.0) -> tuple[Any, Any]:
        values, x = inputs(dtype, moved)
        pair = values if large else tree.map(lambda value: torch.stack([value, value]), values)
        mapped = torch.vmap(step, in_dims=(None if large else 0, None, 0))(pair, x, keys)
        mapped = tree.map(lambda v: v[0], mapped), tree.map(lambda v: v[1], mapped[1])
        return mapped, (step(values, x, keys[0]), apply(values, x, key=keys[1], train=True))

    def two_images(dtype: torch.dtype, moved: float = 0.0) -> tuple[Any, Any]:
        values, x = inputs(dtype, moved)
        mapped = torch.vmap(evaluate, in_dims=(None, 0))(values, x)
        together, _ = apply(values, x, train=False)
        alone = torch.stack([evaluate(values, image) for image in x])
        return (mapped, together), (alone, alone)

    with warnings.catch_warnings():  # about slow operations under vmap
        warnings.simplefilter("ignore")
        with _refused("a training step under torch.func.grad"):
            once = step(variables, images, keys[0])
        if not tree.equal((variables, images), before):
            raise ValueError(
                "the module changes its parameters, buffers or images; return new tensors instead"
            )
        with _refused("a training step under torch.func.vmap"):
            mapped, alone = two_steps(torch.float32)
        aux = precision.cast(once[1], torch.float32)
        if not tree.equal(alone[0][1], aux) or not _is_close(alone[0][0], once[0]):
            raise ValueError(
                "the module gives another result when it is called again with the same images and "
                "key; draw by torch, and keep nothing between calls"
            )
        if not _agree(mapped, alone, two_steps):
            raise ValueError(
                "a training step mapped over two sets of parameters gives another result than two "
                "steps; write the module with operations of torch that map"
            )
        with _refused("evaluation under torch.func.vmap"), torch.no_grad():
            mapped, alone = two_images(torch.float32)
        if not _agree(mapped, alone, two_images):
            raise ValueError(
                "in evaluation the module gives another result for an image beside others than "
                "alone; keep images apart, as nn.BatchNorm2d does after .eval()"
            )


def check_caches(
    call: Callable[[Tensor, Key | None], Tensor], caches: Sequence[Cache], *, train: bool
) -> None:
    """Check that a second call, with filled caches and changed tables, gives the same result."""
    images = spread(2).normal(0, (2, 3, SIZE, SIZE))
    key = random.key(0) if train else None
    try:
        first, again = call(images, key), call(images, key)
    finally:
        empty_caches(caches)
    if not _is_close(first, again):
        names = ", ".join(sorted({cache.name or "a dict" for cache in caches}))
        raise ValueError(
            f"forward keeps {names or 'a tensor'} for its next call, which changes the result of "
            "that call; keep nothing between calls"
        )


@contextlib.contextmanager
def _refused(operation: str) -> Generator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        text = " ".join((str(error), *files))
        hint = next((hint for sign, hint in _HINTS.items() if sign in text), located(error))
        raise ValueError(f"the module does not go through {operation}: {hint}") from error


_HINTS = {
    "torch/utils/checkpoint.py": "it recomputes by torch.utils.checkpoint, which has no form under "
    "torch.func; leave checkpointing out",
    "saved tensor hooks": "it uses hooks on saved tensors, which have no form under torch.func; "
    "leave them out",
    "setup_context": "it has a torch.autograd.Function whose forward takes ctx; write it with "
    "setup_context, and with generate_vmap_rule = True",
    "generate_vmap_rule": "it has a torch.autograd.Function without a rule for vmap; give it "
    "generate_vmap_rule = True",
    "torch/_dynamo/": "it calls torch.compile itself; leave that out, because "
    "--compile and compile_step compile the whole step",
}


def _agree(mapped: Any, alone: Any, again: Callable[..., tuple[Any, Any]]) -> bool:
    """Whether results differ only by rounding; if unclear, in double precision.

    If they differ there too, as after many batch norms of two nearly equal values: whether by no
    more than results for slightly different images do.
    """
    if _is_close(mapped, alone):
        return True
    try:
        mapped, alone = again(torch.float64)
        _, nearly = again(torch.float64, 1e-9)
    except Exception:  # the module computes only in single precision
        _, nearly = again(torch.float32, 1e-6)
    return _is_close(mapped, alone, nearly)


def _is_close(a: Any, b: Any, nearly: Any = None) -> bool:
    """Whether a equals b up to rounding, or up to ten times the difference of ``nearly`` and b."""
    others = tree.leaves(b if nearly is None else nearly)
    for x, y, z in zip(tree.leaves(a), tree.leaves(b), others, strict=True):
        if torch.equal(x, y) or not (x.isfinite().all() and y.isfinite().all()):
            continue
        if not (x.is_floating_point() or x.is_complex()):
            return False
        moved = 10 * torch.linalg.vector_norm(z - y)
        tolerance = _TOLERANCE * (1 + torch.linalg.vector_norm(y)) + moved
        if torch.linalg.vector_norm(x - y) > tolerance:
            return False
    return True
