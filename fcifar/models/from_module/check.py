"""Whether a module is a function of what it is given: it is called, and looked at while it runs.

First without any values, on the meta device, under a mode of torch that sees each operation and its
operands; then on two small images, forward and backward, twice and under ``vmap``.
"""

import contextlib
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import precision, random, tree
from fcifar.errors import located
from fcifar.models.base import Apply, Variables
from fcifar.models.from_module.init import REGISTRIES, spread, tensors_in
from fcifar.random import Key

SIZE = 32  # pixels a side
_ROUNDING = 1e-3  # of the norm of a tensor: by how much single precision may differ
_LARGE = 20_000_000  # parameters
_DEPTH = 5  # how far into lists, dicts and objects a search goes


class Kept(NamedTuple):
    """Something that ``forward`` keeps for its next call, and needs not: a cache."""

    owner: Any  # a part of the module, or a dict that one holds
    name: str  # of the part's attribute; empty for a dict
    before: Any  # what is there without the cache


_NOTHING = object()  # of an attribute: it was not there


def put_back(caches: Sequence[Kept]) -> None:
    """Empty caches."""
    for owner, name, before in caches:
        if not name:
            owner.clear()
            owner.update(before)
        elif before is not _NOTHING:
            setattr(owner, name, before)
        elif hasattr(owner, name):
            delattr(owner, name)


# Without values ----------------------------------------------------------------------------------


class _Watched(TorchDispatchMode):
    """While it is entered, operations take what is given or made meanwhile, and nothing else.

    Args:
        given: tensors by name.
        writable: names of those among them that may be written to.
        about: what a message says of a tensor that is neither.
    """

    def __init__(
        self, given: Mapping[str, Tensor], writable: set[str], about: Callable[[Tensor], str]
    ) -> None:
        super().__init__()
        self.fixed = {_storage(t): name for name, t in given.items() if name not in writable}
        self.about = about
        self.known: dict[int, Tensor] = {}  # held, so that no other memory gets their number
        for tensor in given.values():
            self.made(tensor)

    def made(self, result: Any) -> None:
        for tensor in tensors_in(result):
            self.known.setdefault(_storage(tensor), tensor)

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
        if name == "lift_fresh":  # of torch.tensor and its like
            self.made(args)
        for tensor in tensors_in([*args, *kwargs.values()]):
            if _storage(tensor) not in self.known:
                raise ValueError(self.about(tensor))
        positions = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        operands = positions | dict(kwargs)
        for argument in func._schema.arguments:
            if not argument.is_write:
                continue
            for tensor in tensors_in(operands.get(argument.name)):
                if _storage(tensor) in self.fixed:
                    raise ValueError(
                        f"it changes {self.fixed[_storage(tensor)]} in place; only the statistics "
                        "of batch norm and the vectors of spectral norm may change"
                    )
        result = func(*args, **kwargs)
        self.made(result)
        return result


class _Results(TorchFunctionMode):
    """Shows a ``_Watched`` tensors that are made without an operation, as ``torch.tensor`` does."""

    def __init__(self, watched: _Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(True for _ in tensors_in([*args, *(kwargs or {}).values()])):
            self.watched.made(result)
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
) -> tuple[Kept, ...]:
    """Call a module on the meta device, and make sure that it is pure and gives logits.

    Args:
        module: what is called; none of its attributes may be another after it.
        call: ``(images, key) -> logits``.
        tensors: what ``call`` gives the module by name, and where what it assigns comes out.
        moving: names of those among them that it may change.

    Returns:
        What the call has left in the module's caches, which are empty again.

    Raises:
        ValueError: it is not.
    """
    when = "in training" if train else "in evaluation"
    images = torch.empty(2, 3, SIZE, SIZE, device="meta")
    key = random.key(0, device="meta") if train else None
    given, held = dict(tensors), _attributes(module)
    seen = given | {"the images": images} | ({} if key is None else {"the key": key})
    watched = _Watched(seen, moving, lambda tensor: _about(module, tensor))
    try:
        with torch.device("meta"), watched, _Results(watched):
            logits = call(images, key)
    except (Exception, SystemExit) as error:
        values = "; it reads a tensor's values, which nothing can map or compile"
        raise ValueError(
            f"images of {SIZE}x{SIZE} pixels do not go through the module {when}: "
            f"{located(error)}{values if 'meta' in str(error) else ''}"
        ) from error
    plain = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    for name, value in given.items():
        # A tensor of another shape in an attribute is a table that fits the images.
        is_table = name in plain and tensors[name].shape != value.shape
        if tensors[name] is not value and name not in moving and not is_table:
            raise ValueError(
                f"forward changes {name} {when}; only the statistics of batch norm and the vectors "
                "of spectral norm may change"
            )
    caches = _caches(held, _attributes(module), when)
    put_back(caches)
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
    inside: Any  # a copy, where it is a dict, list, tuple or set


def _attributes(module: nn.Module) -> dict[str, _Attribute]:
    """Every attribute of every part of a module, and what is in those that hold several."""
    found = {}
    for place, part in module.named_modules():
        own = {name: value for name, value in vars(part).items() if name not in REGISTRIES}
        for registry in (own, *(vars(part)[name] for name in sorted(REGISTRIES))):
            for name, value in registry.items():
                inside = value.copy() if isinstance(value, dict | list | set) else None
                whole = f"{place}.{name}".removeprefix(".")
                found[whole] = _Attribute(part, name, value, inside)
    return found


def _caches(
    before: dict[str, _Attribute], after: dict[str, _Attribute], when: str
) -> tuple[Kept, ...]:
    """What has become a tensor where nothing was, in attributes and dicts.

    Raises:
        ValueError: something else has changed.
    """
    caches = []
    for name in before | after:
        old, new = before.get(name), after.get(name)
        if new is not None and (old is None or old.value is None) and _holds_tensors(new.value):
            caches.append(Kept(new.part, new.name, _NOTHING if old is None else None))
            continue
        if old is not None and new is not None and old.value is new.value:
            if _same_inside(old.inside, new.inside):
                continue
            if isinstance(old.inside, dict) and _is_filled(old.inside, new.inside):
                caches.append(Kept(old.value, "", old.inside))
                continue
        raise ValueError(
            f"forward changes {name} {when}, which a function cannot; keep nothing between calls"
        )
    return tuple(caches)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_holds_tensors, value))
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def _is_filled(old: dict[Any, Any], new: dict[Any, Any]) -> bool:
    """Whether nothing but tensors has come into a dict."""
    return all(key in new and new[key] is value for key, value in old.items()) and all(
        key in old or _holds_tensors(value) for key, value in new.items()
    )


def _same_inside(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        return [*old] == [*new] and all(old[key] is new[key] for key in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(x is y for x, y in zip(old, new, strict=True))
    return {id(x) for x in old or ()} == {id(x) for x in new or ()}


# Tensors that come from elsewhere ----------------------------------------------------------------


def _about(module: nn.Module, tensor: Tensor) -> str:
    """What a message says of an operand that was neither given nor made in the call."""
    storage = _storage(tensor)
    for path, found, container in _hidden(module):
        if not isinstance(found, nn.Module):
            if _storage(found) == storage:
                return (
                    f"it uses {path}, a tensor held in a {container}, which a function cannot be "
                    "given; hold it as nn.Parameter or by register_buffer, and use self.NAME"
                )
            continue
        for name, value in (*found.named_parameters(), *found.named_buffers()):
            if _storage(value) == storage and type(found) is type(module):
                return (
                    f"it uses {path}.{name} of a module that was made before; make the module in "
                    "the factory, so that its functions use the module itself"
                )
            if _storage(value) == storage:
                return (
                    f"it uses {path}.{name}, which is neither trained nor saved, for its layer is "
                    f"held in a {container}; hold layers in nn.ModuleList or nn.ModuleDict, or as "
                    "attributes"
                )
    return (
        f"it uses a tensor {list(tensor.shape)} that is neither the module's own nor made in the "
        "call; make the module in the factory, and hold its tensors by nn.Parameter or "
        "register_buffer"
    )


def _hidden(module: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Modules and tensors that parts of a module hold elsewhere than where torch looks for them.

    Each with its path, and what kind of thing holds it.
    """
    own = {id(part) for part in module.modules()}
    seen: set[int] = set()

    def walk(path: str, value: Any, container: str, depth: int) -> Iterator[tuple[str, Any, str]]:
        if id(value) in own or id(value) in seen or depth > _DEPTH or isinstance(value, type):
            return
        seen.add(id(value))
        if isinstance(value, nn.Module | Tensor):
            yield path, value, container
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{path}[{key!r}]", inner, "plain dict", depth + 1)
        elif isinstance(value, list | tuple | set):
            kind = f"plain {type(value).__name__}"
            for i, inner in enumerate(value):
                yield from walk(f"{path}[{i}]", inner, kind, depth + 1)
        elif closure := getattr(value, "__closure__", None):
            for name, cell in zip(value.__code__.co_freevars, closure, strict=True):
                try:
                    inner = cell.cell_contents
                except ValueError:  # of a cell that is empty
                    continue
                yield from walk(f"{path}'s {name}", inner, "function", depth + 1)
        elif hasattr(value, "__dict__") and not isinstance(value, types.ModuleType):
            for name, inner in [*vars(value).items()]:
                kind = f"plain {type(value).__name__}"
                yield from walk(f"{path}.{name}", inner, kind, depth + 1)

    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in REGISTRIES:
                yield from walk(f"{place}.{name}".removeprefix("."), value, "", 0)


# With values -------------------------------------------------------------------------------------


def check_step(apply: Apply, variables: Variables) -> None:
    """Take one small step with a model, again, and under ``vmap``; evaluate two images.

    Raises:
        ValueError: an exception comes out of it, or one of these is not so: arguments stay what
            they are, bit for bit; the same call gives the same; what is mapped over two equals two
            calls, up to rounding.
    """
    before = tree.map(torch.clone, variables)
    images = spread(2).normal(0, (2, 3, SIZE, SIZE))
    given = images.clone()
    keys = random.split(random.key(0))

    def forward(variables: Variables, images: Tensor, key: Key) -> Any:
        return apply(variables, images, key=key, train=True)

    def step(variables: Variables, images: Tensor, key: Key) -> Any:
        def loss(params: Any) -> tuple[Tensor, Any]:
            logits, buffers = forward(variables._replace(params=params), images, key)
            return logits.float().square().sum(), (logits, buffers)

        return torch.func.grad(loss, has_aux=True)(variables.params)

    def evaluate(variables: Variables, image: Tensor) -> Tensor:
        return apply(variables, image[None], train=False)[0][0]

    # Of a large network once, so that the trial takes no more memory than training does.
    large = sum(value.numel() for value in variables.params.values()) > _LARGE
    over = None if large else 0

    def two_steps(dtype: torch.dtype, moved: float = 0.0) -> tuple[Any, Any]:
        values, x = precision.cast((variables, images), dtype)
        x = x + moved * x.flip(-1)
        pair = values if large else tree.map(lambda value: torch.stack([value, value]), values)
        mapped = torch.vmap(step, in_dims=(over, None, 0))(pair, x, keys)
        mapped = tree.map(lambda v: v[0], mapped), tree.map(lambda v: v[1], mapped[1])
        return mapped, (step(values, x, keys[0]), forward(values, x, keys[1]))

    def two_images(dtype: torch.dtype, moved: float = 0.0) -> tuple[Any, Any]:
        values, x = precision.cast((variables, images), dtype)
        x = x + moved * x.flip(-1)
        mapped = torch.vmap(evaluate, in_dims=(None, 0))(values, x)
        together, _ = apply(values, x, train=False)
        alone = torch.stack([evaluate(values, image) for image in x])
        return (mapped, together), (alone, alone)

    with warnings.catch_warnings():  # of how slow an operation is under vmap
        warnings.simplefilter("ignore")
        with _refused("a training step under torch.func.grad"):
            once = step(variables, images, keys[0])
        if not _is_equal(variables, before) or not torch.equal(images, given):
            raise ValueError(
                "the module changes what it is given, its parameters, buffers or images; give back "
                "new tensors instead"
            )
        with _refused("a training step under torch.func.vmap"):
            mapped, alone = two_steps(torch.float32)
        if not _is_equal(alone[0][1], once[1]) or not _is_close(alone[0][0], once[0]):
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


def check_caches(call: Callable[[], Tensor], caches: Sequence[Kept]) -> None:
    """Make sure that what a module keeps changes no result.

    Args:
        call: a call after which the caches stay filled, and tables in attributes what they are.

    Raises:
        ValueError: a second call gives something else.
    """
    try:
        first, again = call(), call()
    finally:
        put_back(caches)
    if not _is_close(first, again):
        names = ", ".join(sorted({kept.name or "a dict" for kept in caches}))
        raise ValueError(
            f"forward keeps {names or 'a tensor'} for its next call, which gives another result by "
            "it; a function cannot, so keep nothing between calls"
        )


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        hint = next(
            (hint for sign, hint in _HINTS.items() if sign in _signs(error)), located(error)
        )
        raise ValueError(f"the module does not go through {what}: {hint}") from error


def _signs(error: BaseException) -> str:
    """Text that tells known reasons apart."""
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return " ".join((str(error), *files))


_HINTS = {
    "torch/utils/checkpoint.py": "it recomputes by torch.utils.checkpoint, which has no form under "
    "torch.func; leave checkpointing out",
    "saved tensor hooks": "it uses hooks on saved tensors, which have no form under torch.func; "
    "leave them out",
    "setup_context": "it has a torch.autograd.Function whose forward takes ctx; write it with "
    "setup_context, and with generate_vmap_rule = True",
    "generate_vmap_rule": "it has a torch.autograd.Function without a rule for vmap; give it "
    "generate_vmap_rule = True",
    "torch/_dynamo/": "it calls torch.compile itself; leave that out, for --compile and "
    "compile_step compile the whole step",
}


def _agree(mapped: Any, alone: Any, again: Callable[..., tuple[Any, Any]]) -> bool:
    """Whether results differ by no more than rounding; in doubt, in double precision.

    Where even there they differ, as after many batch norms of two nearly equal values: whether they
    do so as much as for images that are a little different.
    """
    if _is_close(mapped, alone):
        return True
    try:
        mapped, alone = again(torch.float64)
        _, nearly = again(torch.float64, 1e-9)
    except Exception:  # the module computes in single precision only
        _, nearly = again(torch.float32, 1e-6)
    return _is_close(mapped, alone, nearly)


def _is_equal(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y) or bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)
    )


def _is_close(a: Any, b: Any, nearly: Any = None) -> bool:
    """Equal up to the rounding of sums in another order; or so to what is ``nearly`` b."""
    others = tree.leaves(b if nearly is None else nearly)
    for x, y, z in zip(tree.leaves(a), tree.leaves(b), others, strict=True):
        if torch.equal(x, y) or not (x.isfinite().all() and y.isfinite().all()):
            continue
        if not (x.is_floating_point() or x.is_complex()):
            return False
        moved = 10 * torch.linalg.vector_norm(z - y)
        room = _ROUNDING * (1 + torch.linalg.vector_norm(y)) + moved
        if torch.linalg.vector_norm(x - y) > room:
            return False
    return True
