"""Compiled functions of a run, kept in the user's cache: the next run like it loads them.

    step = ahead_of_time(function, fixed, request, ...)   # (first, second) -> results
    step.prepare(first, second)                           # load it, or compile and keep it

A program (``kernels.aot``) is one file of the cache, found in two ways. By its request, which is
the recipe, the shapes, this code, the versions, the threads and the processor: then nothing has to
be traced. Or by its graph, after tracing: a request may differ from an earlier one in what changes
no operation, and the code of a user's own model can depend on anything.

The files hold machine code. Only files that belong to this user, that others cannot write, and
whose content has the recorded SHA-256 are used; others are compiled again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from fcifar import io, tensor_files, tree
from fcifar.data.paths import cache_root
from fcifar.errors import DamagedError, ExternalError, UsageError
from fcifar.kernels import aot
from fcifar.train import environment
from fcifar.train.events import Noted, Observe, Preparing
from fcifar.train.step_trace import COMPILED, Recorder, Trace
from fcifar.tree import Tree

CACHE = "FCIFAR_CACHE"
COMPILING = {"cpu": 20.0, "cuda": 60.0}  # seconds that compiling takes at most, the first time
LIMIT = 512 * 2**20  # bytes of all programs; those not used for longest go first
_LIBRARY, _PROGRAM, _ALIAS, _LOCK = "library", ".safetensors", ".key", ".lock"
_KEY = re.compile(r"[0-9a-f]{64}")
_FORMAT = 1

Function = Callable[[Any, Any, Any], Tree]  # (fixed, first, second) -> results


class Program(NamedTuple):
    """A program of the cache."""

    path: Path
    about: Mapping[str, str]  # what it was compiled for
    used: float  # when, in seconds since 1970
    bytes: int


# Functions ---------------------------------------------------------------------------------------


def are_for(device: torch.device) -> bool:
    """Whether functions on a device are compiled ahead of time, not by ``torch.compile``."""
    return device.type == "cpu" and aot.why_not() is None


def ahead_of_time(
    function: Function,
    fixed: Tree,
    request: Mapping[str, Any],
    *,
    wrap: Callable[[list[Tensor]], Any],
    otherwise: Callable[[], Callable[[Any, Any], Any]],
    traced: bool = False,
    observe: Observe,
) -> Callable[[Any, Any], Any]:
    """Return ``(first, second) -> results``, compiled once per shape of its arguments.

    Args:
        function: ``(fixed, first, second) -> results``. It may overwrite ``first``.
        fixed: its first argument, the same in all calls.
        request: determines ``function``, as JSON-serializable values.
        wrap: makes the value to return of the leaves of the results.
        otherwise: makes the function to use if this one cannot be compiled ahead of time.
        traced: always trace ``function``, because ``request`` does not determine it.
        observe: called before compiling, and with a line about each program that could not be
            loaded or kept.

    Returns:
        A function with an attribute ``prepare``, which takes the same arguments.
    """
    programs: dict[Any, tuple[aot.Program, Sequence[Tensor]]] = {}
    other: list[Callable[[Any, Any], Any]] = []
    fixed_leaves = tree.leaves(fixed)
    bound: Any = None, None  # the layouts of the last call, and its first argument
    run: Any = None

    def prepare(first: Any, second: Any) -> Any:
        """Load the program for these arguments, or compile and keep it."""
        if other:
            return None
        key = _layout(first), _layout(second)
        if key not in programs:
            layouts = [_layout(fixed), *key]
            try:
                programs[key] = _get({**request, "layouts": layouts}, first, second)
            except aot.UnsupportedError as error:
                observe(Noted(f"{error}; torch.compile compiles the step at every start"))
                other.append(otherwise())
                return None
        return programs[key]

    def _get(full: Mapping[str, Any], first: Any, second: Any) -> tuple[aot.Program, Any]:
        def trace() -> tuple[aot.Graph, list[Tensor]]:
            # The function may overwrite the first argument.
            copied = tree.map(lambda x: x.clone(), first)
            leaves, unflatten = tree.flatten((fixed, copied, second))

            def flat(*xs: Tensor) -> tuple[Tensor, ...]:
                return tuple(tree.leaves(function(*unflatten(list(xs)))))

            return aot.trace(flat, leaves), leaves

        return get(full, trace, traced=traced, observe=observe)

    def call(first: Any, second: Any) -> Any:
        nonlocal bound, run
        given = tree.leaves(second)
        layouts = [(x.shape, x.stride(), x.dtype) for x in given]
        if bound[1] is not first or bound[0] != layouts:
            found = prepare(first, second)
            if found is not None:
                run, constants = found
                run.keep([*constants, *fixed_leaves, *tree.leaves(first)], len(given))
            bound = layouts, first
        if other:
            return other[0](first, second)
        return wrap(run(given))

    call.prepare = prepare  # type: ignore[attr-defined]
    return call


def donating(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, tuple[()]]]:
    """Make ``(state, inputs) -> (state, ())`` of a function that overwrites its first argument."""

    def step(state: Any, inputs: Any) -> tuple[Any, tuple[()]]:
        run(state, inputs)
        return state, ()

    step.prepare = run.prepare  # type: ignore[attr-defined]
    return step


def observed(function: Callable[[Any, Any], Tree], first: Any, second: Any) -> Any:
    """Compile ``(first, second) -> results`` once more, to record what its kernels write.

    Returns:
        A function ``(first, second, keep)`` of arguments like these, which calls it and returns a
        ``step_trace.Trace``. An operation of it is a call of a fused loop, of a kernel of this
        package or of an operation of torch's libraries: all that computes. The kernels are those
        of ``ahead_of_time``, and so are the results, bit for bit.

    Raises:
        UsageError: the function cannot be compiled ahead of time, or is not on the CPU.
    """
    device = tree.device((first, second)) or torch.device("cpu")
    if not are_for(device):
        raise UsageError(
            "the operations of a compiled step are recorded on a CPU under Linux; compare eager "
            f"steps, or only their results ({aot.why_not() or f'this one is on {device}'})"
        )
    copied = tree.map(lambda x: x.clone(), (first, second))
    leaves, unflatten = tree.flatten(copied)

    def flat(*xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree.leaves(function(*unflatten(list(xs)))))

    environment.check_compiler("cpu")
    graph = aot.trace(flat, leaves)
    try:
        program = _open(_compile(graph, leaves, observed=True), graph.outputs)
    except aot.UnsupportedError as error:
        raise UsageError(
            f"the operations of this compiled step cannot be recorded: {error}"
        ) from error

    def call(first: Any, second: Any, keep: Container[int] = ()) -> Trace:
        recorder, written = Recorder(COMPILED, keep), []
        failures: list[Exception] = []

        def add(kernel: str, i: int, count: int, tensor: Tensor | None) -> None:
            try:  # C code cannot pass an exception on
                if tensor is not None:
                    written.append(tensor)
                if i == count - 1:
                    recorder.add(kernel, written)
                    written.clear()
            except Exception as error:
                failures.append(error)

        program.observe(add)
        program.keep([*graph.constants, *tree.leaves((first, second))], 0)
        program([])
        if failures:
            raise failures[0]
        return recorder.finish()

    return call


def _layout(values: Tree) -> tuple[Any, ...]:
    """Shapes, strides and dtypes of the leaves, by name."""
    leaves = tree.named_leaves(values).items()
    return tuple((name, str(x.dtype), tuple(x.shape), x.stride()) for name, x in leaves)


def get(
    request: Mapping[str, Any],
    trace: Callable[[], tuple[aot.Graph, list[Tensor]]],
    *,
    traced: bool,
    observe: Observe,
) -> tuple[aot.Program, Sequence[Tensor]]:
    """Return the program of a request and its constants: from the cache, or compiled and kept.

    Args:
        trace: records the function, and returns the graph and the arguments that it was given.
        traced: trace before looking.
        observe: as for ``ahead_of_time``.

    Raises:
        UnsupportedError: it cannot be compiled ahead of time.
    """

    def note(text: str) -> None:
        observe(Noted(text))

    around = environment.of_programs()
    key = _digest({**around, **request})
    cache = _usable_folder(note)
    if cache is not None and not traced:
        with contextlib.suppress(OSError):
            name = (cache / f"{key}{_ALIAS}").read_text(encoding="ascii", errors="replace")
            if _KEY.fullmatch(name) and (found := _load(cache / f"{name}{_PROGRAM}", note)):
                return found
    environment.check_compiler("cpu")
    observe(Preparing("compiling"))
    graph, arguments = trace()
    if cache is None:
        return _open(_compile(graph, arguments), graph.outputs), graph.constants
    layouts = [(str(x.dtype), tuple(x.shape), x.stride()) for x in arguments]
    name = _digest({**around, "graph": graph.digest, "layouts": layouts})
    path, found = cache / f"{name}{_PROGRAM}", None
    try:
        with FileLock(cache / f"{name}{_LOCK}"):  # another process may be compiling it
            found = _load(path, note)
            if found is None:
                library = _compile(graph, arguments)
                found = _open(library, graph.outputs), graph.constants
                _keep(path, library, graph, {**request.get("about", {}), "what": request["what"]})
        io.write_text(cache / f"{key}{_ALIAS}", name)
        (cache / f"{name}{_LOCK}").unlink(missing_ok=True)
    except (ExternalError, OSError) as error:
        if found is None:
            raise
        note(f"the compiled step is not kept: {error}")
    return found


def _compile(graph: aot.Graph, arguments: Sequence[Tensor], *, observed: bool = False) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fcifar-") as made:
        aot.compile(graph, arguments, Path(made), observed=observed)
        return (Path(made) / aot.LIBRARY).read_bytes()


def _keep(path: Path, library: bytes, graph: aot.Graph, about: Mapping[str, str]) -> None:
    """Write a program to the cache."""
    content = {f"constant{i:03}": value for i, value in enumerate(graph.constants)}
    content[_LIBRARY] = torch.frombuffer(bytearray(library), dtype=torch.uint8)
    own = {"name": path.stem, "outputs": str(graph.outputs)}
    compiler = environment.compiler_digest()
    tensor_files.save(path, content, {**about, **own, "compiler": compiler})
    path.chmod(0o600)  # some systems let a group write new files
    trim(path.parent)


def _load(path: Path, note: Callable[[str], None]) -> tuple[aot.Program, Sequence[Tensor]] | None:
    """Load a program of the cache; None, with a note, if it cannot be used."""
    if not path.exists():
        return None
    try:
        _check_owner(path)
        content, about = tensor_files.read(path)
        if about["name"] != path.stem:
            raise DamagedError(f"{path} is a copy of another program")
        library = content.pop(_LIBRARY)
        constants = tuple(value for _, value in sorted(content.items()))
        own = environment.compiler_digest()
        if own and own != about["compiler"]:  # another compiler, another rounding
            return None
        program = _open(library.numpy().tobytes(), int(about["outputs"]))
        os.utime(path)
        return program, constants
    except (DamagedError, ExternalError, KeyError, ValueError, OSError) as error:
        note(f"a compiled step in the cache cannot be used and is compiled again ({error})")
        return None


def _open(library: bytes, outputs: int) -> aot.Program:
    """Load a library from memory, so that nothing can change between its check and its use."""
    descriptor = os.memfd_create("fcifar")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(library)
        # A name of its own: for a name that it knows, the loader returns the library that it has.
        own = "./" * next(_NUMBERS)
        return aot.Program(f"/proc/self/fd/{own}{descriptor}", outputs)
    finally:
        os.close(descriptor)


_NUMBERS = itertools.count()


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, values], sort_keys=True).encode()).hexdigest()


# Whether to compile ------------------------------------------------------------------------------


def saved_seconds(steps: int, step_flops: float) -> float:
    """Estimate how much training time compiling saves, before the time that it takes.

    Measured with one and two threads: an eager step spends 4 ms outside its arithmetic, and its
    arithmetic takes 20 ps longer per floating-point operation.
    """
    return steps * (4e-3 + 2e-11 * step_flops)


def choose(device: str, steps: int, step_flops: float) -> tuple[bool, str]:
    """Return whether a run repays compiling, and a line that says why."""
    kind = device.partition(":")[0]
    if kind not in COMPILING:
        return False, f"not compiled: torch.compile is not used on {kind} by default"
    if environment.find_compiler() is None:
        return False, "not compiled: there is no C++ compiler (--compile says how to install one)"
    count = f"{steps:,} step{'s' if steps > 1 else ''}"
    if saved_seconds(steps, step_flops) >= COMPILING[kind]:
        return True, f"compiled, which {count} repay (--no-compile leaves it out)"
    return False, f"not compiled, which {count} do not repay (--compile does it anyway)"


# The cache ---------------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of the programs: "programs" in ``$FCIFAR_CACHE``, else in the user's cache."""
    chosen = os.environ.get(CACHE)
    return (Path(os.path.expanduser(chosen)) if chosen else cache_root()) / "programs"


def find() -> list[Program]:
    """Return all programs, the last used first."""
    found = []
    for path in folder().glob(f"*{_PROGRAM}"):
        with contextlib.suppress(OSError, ExternalError, DamagedError):
            about, status = tensor_files.read_metadata(path), path.stat()
            found.append(Program(path, about, status.st_mtime, status.st_size))
    return sorted(found, key=lambda program: -program.used)


def clear() -> int:
    """Remove all programs; return their bytes.

    Raises:
        ExternalError: a file cannot be removed.
    """
    kinds = (_PROGRAM, _ALIAS, _LOCK)
    files = [path for path in folder().glob("*") if path.suffix in kinds and not path.is_dir()]
    total = sum(path.lstat().st_size for path in files)
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ExternalError(f"cannot remove {path}: {error.strerror}") from error
    return total


def trim(cache: Path, limit: int = LIMIT) -> None:
    """Remove the programs that have not been used for longest until the rest fits."""
    io.remove_partial(cache, older_than=3600)
    files = [(path.stat().st_mtime, path) for path in cache.glob(f"*{_PROGRAM}")]
    total = 0
    for _, path in sorted(files, reverse=True):
        total += path.stat().st_size
        if total > limit:
            path.unlink(missing_ok=True)
    names = {path.stem for path in cache.glob(f"*{_PROGRAM}")}
    for alias in cache.glob(f"*{_ALIAS}"):
        with contextlib.suppress(OSError):
            if alias.read_text(encoding="ascii", errors="replace") not in names:
                alias.unlink()


def _usable_folder(note: Callable[[str], None]) -> Path | None:
    """Return the folder, and make it; None, with a note, if it cannot be used."""
    cache = folder()
    try:
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise io.cannot_write(cache, error) from error
        _check_owner(cache)
    except ExternalError as error:
        note(f"the step is compiled at every start: {error}")
        return None
    return cache


def _check_owner(path: Path) -> None:
    """Raise an ExternalError unless a file or folder is this user's, and others cannot write it."""
    status = path.lstat()
    if status.st_uid != os.getuid():
        raise ExternalError(f"{path} belongs to another user; set ${CACHE} to a folder of your own")
    if status.st_mode & 0o022:
        raise ExternalError(f"other users may write to {path}; run chmod go-w on it")
