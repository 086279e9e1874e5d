"""Export a trained model: write it, read it back, and compare it with itself.

``.pth`` and ``.safetensors`` hold the state_dict. ``.onnx`` and ``.pt2`` hold the whole function,
from uint8 images [N, 3, 32, 32] to float32 logits [N, C], including the normalisation.
"""

import importlib.util
import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import fcifar
from fcifar import recipes, tensor_files, tree
from fcifar.data.dataset import SIDE
from fcifar.errors import ExternalError, UsageError, one_line, reason
from fcifar.export import state_dict
from fcifar.io import replacing
from fcifar.models import Variables
from fcifar.runs.inference import Trained, predict
from fcifar.step import normalize
from fcifar.train.runtime import Runtime, activate

CHECKED = 1000  # images at most
METADATA = "fcifar.json"  # the extra file of a .pt2
_BATCH = 300  # no divisor of CHECKED, so that the last batch has another size
_ONNX_DOC = "uint8 images [N, 3, 32, 32], RGB, to float32 logits [N, C]; the normalisation is in it"

Function = Callable[[Tensor], Tensor]  # uint8 [N, 3, 32, 32] -> float32 [N, C]


class Format(NamedTuple):
    """A file format for models."""

    name: str
    write: Callable[[Trained, dict[str, str], Path], None]
    read: Callable[[Path, Trained], Function]
    modules: tuple[str, ...] = ()  # required, from the extra "onnx"


class Agreement(NamedTuple):
    """How far two models agree on the same images."""

    images: int
    different: int  # predictions
    largest_difference: float  # of two logits; NaN if only one is finite


def describe(trained: Trained) -> dict[str, str]:
    """Metadata to use a model and to find its origin; lists and recipe as JSON.

    ``temperature``, if there is one, divides the logits: a graph does that itself, and the user of
    a state_dict has to.
    """
    recipe = trained.recipe
    return {
        "fcifar": fcifar.__version__,
        "model": recipe.model,
        "mean": json.dumps(recipe.mean),
        "std": json.dumps(recipe.std),
        "classes": json.dumps(trained.classes),
        "recipe": json.dumps(recipes.to_dict(recipe)),
        "seed": str(trained.seed),
        "dataset": trained.dataset,
        "dataset_digest": trained.dataset_digest,
        "params_digest": tree.digest(trained.variables.params),
        **({"soup": trained.soup} if trained.soup else {}),
        **({"temperature": repr(trained.temperature)} if trained.temperature != 1 else {}),
    }


# state_dicts -------------------------------------------------------------------------------------


def _state_dict(trained: Trained) -> dict[str, Tensor]:
    """Parameters and buffers, each with its own memory."""
    both = {**trained.variables.params, **trained.variables.buffers}
    return {name: value.detach().contiguous().clone() for name, value in both.items()}


def _write_pth(trained: Trained, metadata: dict[str, str], path: Path) -> None:
    values = OrderedDict(_state_dict(trained))
    if trained.model.versions:  # required by some modules' load_state_dict
        versions = ((name, {"version": number}) for name, number in trained.model.versions)
        values._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    buffer = io.BytesIO()  # a file's name would be part of the content; see also _write_pt2
    torch.save(values, buffer)
    path.write_bytes(buffer.getbuffer())


def _write_safetensors(trained: Trained, metadata: dict[str, str], path: Path) -> None:
    tensor_files.write(path, _state_dict(trained), metadata)


def _read_state_dict(path: Path, trained: Trained) -> Function:
    """The model's function with the values of a file, which must be equal bit for bit."""
    tensors = state_dict.read(path)[0].tensors
    if not tree.equal(tensors, _state_dict(trained)):
        raise ValueError("the file does not hold what was written")
    params, buffers = ({name: tensors[name] for name in part} for part in trained.variables)
    preprocess = normalize(tuple(trained.recipe.mean), tuple(trained.recipe.std))
    values = Variables(params, buffers)
    return lambda images: trained.model.apply(values, preprocess(images), train=False)[0]


# Graphs ------------------------------------------------------------------------------------------


def _as_module(trained: Trained) -> nn.Module:
    """The whole function as a module, whose tensors have the names of ``trained.variables``."""
    (params, buffers), apply = trained.variables, trained.model.apply
    preprocess = recipes.make_preprocess(trained.recipe)

    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            own = Variables(dict(self.named_parameters()), dict(self.named_buffers()))
            return apply(own, preprocess(images), train=False)[0].to(torch.float32)

    whole = Whole()
    for name, value in {**params, **buffers}.items():
        *path, leaf = name.split(".")
        parent: nn.Module = whole
        for child in path:
            if child not in parent._modules:
                parent.add_module(child, nn.Module())
            parent = parent.get_submodule(child)
        if name in params:
            parent.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        else:
            parent.register_buffer(leaf, value)
    return whole.eval()


def _export_program(trained: Trained) -> torch.export.ExportedProgram:
    """The graph of the whole function, for any number of images."""
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)  # a size of 1 would become static
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.export.export(_as_module(trained), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_pt2(trained: Trained, metadata: dict[str, str], path: Path) -> None:
    extra = {METADATA: json.dumps(metadata, sort_keys=True)}
    buffer = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    torch.export.save(_export_program(trained), buffer, extra_files=extra)
    path.write_bytes(buffer.getbuffer())


def _read_pt2(path: Path, trained: Trained) -> Function:
    with warnings.catch_warnings(), path.open("rb") as file:
        # torch 2.11 warns about its own buffer.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.export.load(file).module()


def _write_onnx(trained: Trained, metadata: dict[str, str], path: Path) -> None:
    import onnx

    names = {"input_names": ["images"], "output_names": ["logits"]}
    exported = torch.onnx.export(_export_program(trained), dynamo=True, verbose=False, **names)
    if exported is None:
        raise ValueError("torch.onnx gave nothing")
    model = exported.model_proto
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]  # intermediate shapes, which can be inferred
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # the exporter's notes
    model.producer_name, model.doc_string = "fcifar", _ONNX_DOC
    del model.metadata_props[:]
    for name, value in sorted(metadata.items()):
        model.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _read_onnx(path: Path, trained: Trained) -> Function:
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=cpu)
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


FORMATS: dict[str, Format] = {
    ".pth": Format("state_dict", _write_pth, _read_state_dict),
    ".safetensors": Format("safetensors", _write_safetensors, _read_state_dict),
    ".onnx": Format("ONNX", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format("torch.export", _write_pt2, _read_pt2),
}


# Writing and checking ----------------------------------------------------------------------------


def check(path: Path, *, force: bool) -> Format:
    """Return the format of ``path``'s suffix.

    Raises:
        UsageError: there is none, a required package is not installed, or the file exists and
            ``force`` is not set.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"a model cannot be written as {one_line(path)}; its name must end in "
            f"{', '.join(FORMATS)}"
        )
    missing = [name for name in form.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{one_line(path)} needs {' and '.join(missing)}; pip install "
            "'fcifar[onnx]', or choose .pth, .safetensors or .pt2"
        )
    check_free(path, force=force)
    return form


def check_free(path: Path, *, force: bool) -> None:
    """Raise a UsageError if the file exists and ``force`` is not set."""
    if not force and (path.exists() or path.is_symlink()):
        raise UsageError(f"{one_line(path)} already exists; choose another name, or give --force")


def export(
    trained: Trained, path: Path, images: Tensor, *, threads: int = 1, force: bool = False
) -> Agreement:
    """Write a model, read it back, and compare the two on images, in float32 on the CPU.

    The file appears only if all predictions are equal.

    Args:
        path: the suffix is one of ``FORMATS``.
        images: uint8 [N, 3, 32, 32], at least one.

    Raises:
        UsageError: as ``check``.
        ExternalError: the file cannot be written, the model cannot be converted, or the file
            predicts another class.
    """
    form = check(path, force=force)
    if trained.temperature != 1 and path.suffix.lower() == ".pth":
        raise UsageError(
            f"{one_line(path)} would hold a state_dict alone, without the temperature; choose "
            ".safetensors, .onnx or .pt2"
        )
    runtime = Runtime(threads=threads)
    with replacing(path) as temporary:
        with activate(runtime), torch.no_grad():
            try:
                form.write(trained, describe(trained), temporary)
                function = form.read(temporary, trained)
                found = torch.cat([function(part) for part in images.split(_BATCH)])
            except (OSError, SafetensorError, ExternalError):
                raise
            except Exception as error:  # converters raise many kinds
                raise ExternalError(
                    f"{one_line(path)} is not written: as {form.name} this model cannot be "
                    f"exported ({reason(error)}); choose another format"
                ) from error
        agreement = compare(predict(trained, runtime, images), found)
        if agreement.different:
            raise ExternalError(
                f"{one_line(path)} is not written: read back, it predicts another class for "
                f"{agreement.different:,} of {agreement.images:,} images (logits differ by up to "
                f"{agreement.largest_difference:.2g}); choose another format"
            )
    return agreement


def compare(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare two sets of logits [N, C] for the same images."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(same, 0.0, (ours.double() - theirs.double()).abs())
    different = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    return Agreement(len(ours), int(different), float(difference.max()))


def some_of(images: Tensor, count: int = CHECKED) -> Tensor:
    """Up to ``count`` images, evenly spaced, because a data set may be sorted by class."""
    rows = torch.arange(min(count, len(images))) * len(images) // min(count, len(images))
    return images[rows]


def summary(trained: Trained, path: Path, agreement: Agreement) -> dict[str, Any]:
    """A summary of the export for JSON."""
    return {
        "path": str(path),
        "format": FORMATS[path.suffix.lower()].name,
        "bytes": path.stat().st_size,
        "model": trained.recipe.model,
        "classes": list(trained.classes),
        "mean": list(trained.recipe.mean),
        "std": list(trained.recipe.std),
        "params_digest": tree.digest(trained.variables.params),
        **({"temperature": trained.temperature} if trained.temperature != 1 else {}),
        "check": {**agreement._asdict(), "same_predictions": agreement.different == 0},
    }
