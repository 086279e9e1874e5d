"""Compile a function of tensors ahead of time to a library that runs without the compiler.

    graph = trace(function, arguments)
    compile(graph, arguments, folder)                 # seconds
    program = Program(f"{folder}/{LIBRARY}", 0)     # milliseconds: no Dynamo, no Inductor
    program.keep([*graph.constants, *arguments], 0)
    program([])                                       # run it

A step has its gradient, its draws and its update inside one graph of tensors, so that ``make_fx``
can record it as elementary operations. Inductor lowers them to C++: fused loops, and a function
``run_impl`` that calls them in order, with torch's and our kernels. ``program.h`` takes the place
of AOTInductor's runtime around it. The library needs only torch's C functions.

For the CPU on Linux (``why_not``). Programs whose operations have no C function raise
``UnsupportedError``: ``torch.compile`` runs those.
"""

import ctypes
import dataclasses
import functools
import hashlib
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fcifar.errors import ExternalError, UsageError, one_line
from fcifar.kernels import build, conv_pool, norm_gelu, threefry, wide_conv, winograd
from fcifar.random import threefry as cipher

LIBRARY = "program.so"
_PROGRAM, _SHIMS = (Path(__file__).with_name(name) for name in ("program.h", "shims.h"))
_RUN = re.compile(
    r"void AOTInductorModel::run_impl\(.*?\} // AOTInductorModel::run_impl", re.DOTALL
)
_LOOPS = re.compile(r'extern "C"\s+void\s+\w+\([^;{]*\);')
_CACHED = re.compile(r"^CACHE_TORCH_\w+\(\w+\);", re.MULTILINE)
_KINDS = {"Tensor": "AtenTensorHandle", "int": "int64_t", "bool": "int32_t"}  # of C functions


class UnsupportedError(Exception):
    """A function that cannot be compiled ahead of time."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """A recorded function, and the constants that it reads, its first arguments."""

    module: torch.fx.GraphModule
    constants: tuple[Tensor, ...]

    @property
    def outputs(self) -> int:
        """The number of tensors that it returns."""
        results: Any = self.module.graph.output_node().args[0]
        return len(results)

    @property
    def digest(self) -> str:
        """A SHA-256 of the operations, and of the constants' values."""
        parts = [self.module.code.encode()]
        for value in self.constants:
            parts += [f"{value.dtype} {tuple(value.shape)}".encode(), _bytes(value)]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def why_not() -> str | None:
    """Why programs cannot be used on this machine; None if they can."""
    if sys.platform != "linux":
        return f"they are for Linux, and this is {sys.platform}"
    try:
        import torch._C._aoti as aoti
    except ImportError:
        return "this build of torch has no AOTInductor"
    return None if hasattr(aoti, "unsafe_alloc_void_ptrs_from_tensors") else "torch is too old"


# Compile -----------------------------------------------------------------------------------------


def trace(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Graph:
    """Record what ``function`` does with tensors like ``arguments``, which it may overwrite.

    It returns a sequence of tensors. What it closes over is a constant.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    # Real tensors, because a fake one of a constant would have no value.
    operation = nullcontext() if build.why_not() else cipher.using(threefry.threefry2x32)
    with operation, _without_ranks():
        module = make_fx(function, tracing_mode="real")(*arguments)
    graph, constants = module.graph, {}
    first = graph.find_nodes(op="placeholder")[0]
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name not in constants:
            with graph.inserting_before(first):
                argument = graph.placeholder(f"constant{len(constants)}")
            constants[name] = argument, getattr(module, name)
        node.replace_all_uses_with(constants[name][0])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # fake tensors of several modes, which inductor refuses
    module.recompile()
    return Graph(module, tuple(value for _, value in constants.values()))


@contextmanager
def _without_ranks() -> Generator[None]:
    """Do not communicate while a function is recorded: the other ranks may have loaded it."""
    with torch.library._scoped_library("_c10d_functional", "IMPL") as library:
        library.impl("all_reduce", lambda x, *_: x.clone(), "CPU", allow_override=True)
        yield


def compile(
    graph: Graph, arguments: Sequence[Tensor], folder: Path, *, observed: bool = False
) -> None:
    """Write the library of a recorded function to ``folder / LIBRARY``.

    ``observed`` is for ``Program.observe``; the kernels are the same.

    Raises:
        UnsupportedError: it needs an operation without a C function, or the compiler fails.
        ExternalError: a file cannot be written.
    """
    kernels: dict[tuple[ModuleType, Any], None] = {}

    def prepare(kernel: ModuleType, shape: Any) -> None:
        kernels[kernel, shape] = None

    loops, wrapper = _lower(graph.module, [*graph.constants, *arguments], prepare)
    body = _RUN.search(wrapper)
    if body is None or "constants_" in body[0] or "proxy_executor_call" in body[0]:
        raise UnsupportedError("it needs an operation that torch runs in Python")
    run = _observe(body[0], _LOOPS.findall(wrapper)) if observed else body[0]
    declared = "\n".join(f"{text};" for texts in _shims().values() for text in texts)
    is_ours = any(f"aoti_torch_cpu_{_name(op)}(" in body[0] for op in _shims())
    tables, jobs = _tables(list(kernels)) if is_ours else ("", {})
    program = "\n".join(
        [
            _PROGRAM.read_text(encoding="utf-8"),
            _SHIMS.read_text(encoding="utf-8") if is_ours else "",
            tables,
            *_LOOPS.findall(wrapper),
            f'extern "C" {{\n{declared}\n}}',
            "namespace torch::aot_inductor {",
            *_CACHED.findall(wrapper),
            run.replace("AOTInductorModel::", "Program::").replace(_KERNELS, ""),
            "} // namespace",
        ]
    )
    try:
        (folder / "program.cpp").write_text(program, encoding="utf-8")
        (folder / "loops.cpp").write_text(loops, encoding="utf-8")
    except OSError as error:
        raise ExternalError(f"cannot write to {folder}: {error.strerror}") from error
    jobs["program.o"] = [*_flags(quick=True), "-c", "program.cpp", "-o", "program.o"]
    jobs["loops.o"] = [*_flags(), "-c", "loops.cpp", "-o", "loops.o"]
    libraries = ["-L", str(Path(torch.__file__).parent / "lib"), "-ltorch_cpu"]
    call = functools.partial(build.call, folder=folder)
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(call, jobs.values()))
        call(["-shared", "-s", *jobs, "-fopenmp", *libraries, "-o", LIBRARY])
    except UsageError as error:
        raise UnsupportedError(str(error)) from error
    for path in folder.iterdir():
        if path.name != LIBRARY:
            path.unlink()


_KERNELS = (
    "[[maybe_unused]] auto& kernels = static_cast<AOTInductorModelKernels&>(*this->kernels_.get());"
)


def _observe(run: str, loops: Sequence[str]) -> str:
    """Insert a call of ``observe`` behind each call of a kernel, for each tensor that it writes.

    A loop writes through its pointers that are not const. An operation of a library returns new
    tensors by their handles, or writes to its first argument if its name ends in "_out" or "_".
    """
    names = {text.partition("(")[0].split()[-1] for text in loops}
    calls = re.compile(rf" *({'|'.join([*names, _OPERATION])})\((.*)\);")
    lines, found = [], 0
    for line in run.splitlines():
        lines.append(line)
        match = calls.fullmatch(line)
        if match is None:
            continue
        name, operation, *_ = match.groups()
        found += 1
        written = _WRITTEN.findall(line)
        if operation is not None:
            name, written = operation, _RETURNED.findall(line)
            if not written and operation.endswith(("_out", "_")):
                written = [_first_argument(match.groups()[-1])]
        lines += [
            f'    observe("{name}", {i}, {len(written)}, {x});' for i, x in enumerate(written)
        ]
    if found != sum(len(re.findall(rf"\b{name}\(", run)) for name in [*names, _OPERATION]):
        raise UnsupportedError("inductor wrote a call of a kernel in an unknown form")
    return "\n".join(lines)


_OPERATION = r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_cpu_(\w+)"
_WRITTEN = re.compile(r"\((?!const )[\w:]+ ?\*\)\((\w+)\.data_ptr\(\)\)")
_RETURNED = re.compile(r"&(\w+_handle)\b")


def _first_argument(arguments: str) -> str:
    """Return the first argument of a call, which may be a call itself."""
    depth = 0
    for i, c in enumerate(arguments):
        depth += (c in "({") - (c in ")}")
        if depth < 0 or (c == "," and not depth):
            return arguments[:i]
    return arguments


def _lower(
    module: torch.fx.GraphModule, inputs: Sequence[Tensor], prepare: Callable[..., None]
) -> tuple[str, str]:
    """Return inductor's C++ of the fused loops, and of all that is around them."""
    sources: list[str] = []

    def take(graph: Any, wrapper: str, loops: str, *_: Any, **__: Any) -> str:
        sources[:] = loops, wrapper
        return LIBRARY

    try:
        _compile_with_inductor(module, inputs, prepare, take)
    except Exception as error:  # of inductor; torch.compile will say what is wrong with a graph
        raise UnsupportedError(
            f"inductor cannot compile it ahead of time ({one_line(error)})"
        ) from error
    if not sources:
        raise UnsupportedError("inductor made no code of it")
    return sources[0], sources[1]


def _compile_with_inductor(
    module: torch.fx.GraphModule,
    inputs: Sequence[Tensor],
    prepare: Callable[..., None],
    take: Callable[..., str],
) -> None:
    """Lower a graph, and pass its sources to ``take`` instead of inductor's compiler."""
    from torch._inductor import codecache, cpu_vec_isa
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.virtualized import V

    from fcifar.kernels import backends

    settings = backends.settings(["post_grad_custom_pre_pass"], prepare=prepare)
    patches = settings["config_patches"]
    patches["cpp_wrapper"] = True
    patches["aot_inductor.output_path"] = LIBRARY  # of a file that is not written
    patches["aot_inductor.custom_ops_to_c_shims"] = _shims()
    if build.why_not() is None:  # the compiler knows AVX-512: our own kernels need it
        patches["cpp.vec_isa_ok"] = True
    with inductor.patch(patches):
        # Inductor asks the compiler what it supports. Meanwhile the graph is lowered. The settings
        # are of a thread.
        ask = inductor.patch(patches)(cpu_vec_isa.valid_vec_isa_list)
        asking = threading.Thread(target=ask)
        asking.start()
        with (
            V.set_aot_compilation(True),
            mock.patch.object(codecache.AotCodeCompiler, "compile", take),
        ):
            inner = functools.partial(compile_fx_inner, extern_node_serializer=None)
            compile_fx(module, list(inputs), inner_compile=inner, **settings)
        asking.join()


# The tables of ``shims.h``: their name, that of a row's type, and its functions.
_TABLES: dict[ModuleType, tuple[str, str, tuple[str, ...]]] = {
    conv_pool: ("conv_pools", "ConvPool", ("forward", "backward", "backward_each")),
    wide_conv: ("wide_convs", "WideConv", ("backward",)),
    winograd: ("winograds", "Winograd", ("forward", "backward")),
}


@functools.cache
def _shims() -> dict[Any, list[str]]:
    """The declaration of each of our operations as a C function, as inductor calls it."""
    ops = (
        *(conv_pool.conv_pool, conv_pool.conv_pool_backward, conv_pool.conv_pool_backward_each),
        *(winograd.conv, winograd.conv_backward, winograd.conv_pool, winograd.conv_pool_backward),
        *(norm_gelu.norm_gelu, norm_gelu.norm_gelu_sums, norm_gelu.norm_gelu_backward),
        *(norm_gelu.moments, wide_conv.wide_conv_backward, threefry.threefry2x32),
    )
    declared = {}
    for op in ops:
        schema = op._schema
        kinds = [_KINDS[str(argument.type)] for argument in schema.arguments]
        kinds += ["AtenTensorHandle*"] * len(schema.returns)
        declared[op] = [f"AOTITorchError aoti_torch_cpu_{_name(op)}({', '.join(kinds)})"]
    return declared


def _name(op: Any) -> str:
    return op._schema.name.partition("::")[2]


def _tables(kernels: Sequence[tuple[ModuleType, Any]]) -> tuple[str, dict[str, list[str]]]:
    """The tables of ``shims.h``, and the compiler's arguments by the object that they make."""
    flags, declared, jobs = [f for f in build.FLAGS if f != "-shared"], [], {}
    rows: dict[ModuleType, list[str]] = {kernel: [] for kernel in _TABLES}
    for i, (kernel, shape) in enumerate(kernels):
        _, kind, functions = _TABLES[kernel]
        if kernel is winograd:  # one for each direction
            functions = functions[shape.gradient :][:1]
        names = {name: f"{name}_{i}" for name in functions}
        macros = kernel.macros(shape) | names
        defined = [f"-D{name}={value}" for name, value in macros.items()]
        jobs[f"kernel{i}.o"] = [*flags, *defined, "-c", str(kernel.SOURCE), "-o", f"kernel{i}.o"]
        declared += [
            f'extern "C" std::remove_pointer_t<decltype({kind}::{name})> {made};'
            for name, made in names.items()
        ]
        sizes = ", ".join(str(int(n)) for n in shape)
        pointers = [names.get(name, "nullptr") for name in _TABLES[kernel][2]]
        rows[kernel].append(f"{{{', '.join([f'{{{sizes}}}', *pointers])}}}")
    for source in (threefry.SOURCE, norm_gelu.SOURCE):
        jobs[f"{source.stem}.o"] = [*flags, "-c", str(source), "-o", f"{source.stem}.o"]
    for kernel, (name, kind, _) in _TABLES.items():
        declared.append(f"const std::vector<{kind}> {name} = {{{', '.join(rows[kernel])}}};")
    return "\n".join(declared), jobs


def _flags(*, quick: bool = False) -> list[str]:
    """Inductor's own arguments of the compiler; ``quick`` for code that only calls other code."""
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    options = CppTorchDeviceOptions(
        vec_isa=pick_vec_isa(),
        device_type="cpu",
        aot_mode=True,
        compile_only=True,
        min_optimize=quick,
    )
    return [
        *(f"-D{name}" for name in options.get_definitions()),
        *(f"-{flag}" for flag in options.get_cflags()),
        *(f"-I{folder}" for folder in options.get_include_dirs()),
        *" ".join(options.get_passthrough_args()).split(),
    ]


# Load --------------------------------------------------------------------------------------------


class Program:
    """A loaded library. Calls of one program must not overlap."""

    def __init__(self, path: str, outputs: int) -> None:
        """Load the library, which is code of this process from then on.

        Args:
            path: a name that was not loaded before.
            outputs: number of tensors that it returns.

        Raises:
            ExternalError: it cannot be loaded.
        """
        try:
            library = ctypes.CDLL(path)
            self._run, self._release = library.fcifar_run, library.fcifar_release
            self._error = library.fcifar_error
        except (OSError, AttributeError) as error:
            raise ExternalError(f"cannot load the program {path}: {error}") from error
        self._library = library
        self._observer: Any = None
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._run.argtypes = [pointer, number, number, pointer]
        self._release.argtypes, self._release.restype = [pointer, number], None
        self._error.restype = ctypes.c_char_p
        self._outputs = (pointer * max(outputs, 1))()
        self._count = outputs
        self._kept: tuple[Tensor, ...] = ()
        self._handles = (pointer * 0)()

    def keep(self, tensors: Sequence[Tensor], given: int) -> None:
        """Set the first arguments of all later calls; ``given`` more are passed to each."""
        self._release(self._handles, len(self._kept))
        self._kept = tuple(tensors)
        self._handles = (ctypes.c_void_p * (len(tensors) + given))(*_handles(tensors))

    def observe(self, observer: Callable[[str, int, int, Tensor | None], object]) -> None:
        """Call ``observer`` in later calls with each tensor that a kernel has just written.

        Its arguments are the kernel, the number of the tensor among those that this call of the
        kernel writes, how many these are, and the tensor, which the next kernel may overwrite; None
        for a result that was not computed. The library was compiled with ``observed=True``.
        """

        def observed(kernel: bytes, i: int, count: int, handle: int) -> None:
            (tensor,) = _stolen([handle]) if handle else [None]
            observer(kernel.decode(), i, count, tensor)

        kept = self._observer = _OBSERVER(observed)  # because the library only has its address
        address = ctypes.cast(kept, ctypes.c_void_p).value
        ctypes.c_void_p.in_dll(self._library, "fcifar_observer").value = address

    def __del__(self) -> None:
        if hasattr(self, "_handles"):  # it was loaded
            self._release(self._handles, len(self._kept))

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Run once; raises a RuntimeError if an operation fails."""
        kept, handles = len(self._kept), self._handles
        for i, handle in enumerate(_handles(given), kept):
            handles[i] = handle
        if self._run(handles, kept, len(given), self._outputs):
            raise RuntimeError(self._error().decode(errors="replace"))
        return _stolen(self._outputs) if self._count else []


def _stolen(handles: Iterable[int | None]) -> list[Tensor]:
    """Return the tensors of handles, which they take over."""
    from torch._C._aoti import alloc_tensors_by_stealing_from_void_ptrs as tensors_of

    return tensors_of([_capsule(handle, None, None) for handle in handles])


def _handles(tensors: Sequence[Tensor]) -> Iterator[int]:
    """Return pointers to new references to tensors."""
    from torch._C._aoti import unsafe_alloc_void_ptrs_from_tensors as capsules_of

    return (_pointer(capsule, None) for capsule in capsules_of(list(tensors)))


_pointer, _capsule = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_New
_pointer.argtypes, _pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule.restype = ctypes.py_object
_OBSERVER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
