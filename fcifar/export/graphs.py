"""A trained network as one function, from uint8 images to logits, in ONNX and ``torch.export``."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcifar import recipes
from fcifar.data.dataset import SIDE
from fcifar.models import Variables
from fcifar.runs.inference import Trained

INPUT, OUTPUT, BATCH = "images", "logits", "N"
HEAD = "fcifar.json"  # the extra file of a .pt2
ABOUT = "uint8 images [N, 3, 32, 32], RGB, to float32 logits [N, C]; the normalisation is in it"

Function = Callable[[Tensor], Tensor]  # uint8 [N, 3, 32, 32] -> float32 [N, C]


def as_module(network: Trained) -> nn.Module:
    """The network as a module from uint8 images [N, 3, 32, 32] to float32 logits [N, C].

    Parameters and buffers have the names that they have in ``network.variables``.
    """
    variables, apply = network.variables, network.model.apply
    preprocess = recipes.make_preprocess(network.recipe)

    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            own = Variables(dict(self.named_parameters()), dict(self.named_buffers()))
            return apply(own, preprocess(images), train=False)[0].to(torch.float32)

    whole = Whole()
    for name, value in variables.params.items():
        parent, leaf = _parent(whole, name)
        parent.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    for name, value in variables.buffers.items():
        parent, leaf = _parent(whole, name)
        parent.register_buffer(leaf, value)
    return whole.eval()


def _parent(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that is to hold ``name``, made where it is not there, and the last part of it."""
    *parts, leaf = name.split(".")
    for part in parts:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, leaf


def export_program(network: Trained) -> torch.export.ExportedProgram:
    """The function as a graph, for any number of images."""
    # Two of them, for one alone would be taken for all that there ever is.
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim(BATCH)},)
    program = torch.export.export(as_module(network), (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:  # where each came from, on this machine
        node.meta.pop("stack_trace", None)
    return program


def write_pt2(network: Trained, about: dict[str, str], path: Path) -> None:
    """Write the graph as ``torch.export.save`` does, with ``about`` as JSON in an extra file."""
    extra = {HEAD: json.dumps(about, sort_keys=True)}
    buffer = io.BytesIO()  # for where a disk is full, torch's writer of files ends the process
    torch.export.save(export_program(network), buffer, extra_files=extra)
    path.write_bytes(buffer.getbuffer())


def read_pt2(path: Path) -> Function:
    """The function in a file of ours; of an untrusted one it may run code."""
    with warnings.catch_warnings(), path.open("rb") as file:
        # torch 2.11 warns of a buffer of its own.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.export.load(file).module()


def write_onnx(network: Trained, about: dict[str, str], path: Path) -> None:
    """Write the graph as ONNX, with ``about`` as metadata properties."""
    import onnx

    exported = torch.onnx.export(
        export_program(network),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    if exported is None:
        raise ValueError("torch.onnx gave nothing")
    model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]  # shapes in between, which anybody can infer from the others
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # what the exporter knew of each
    model.producer_name, model.doc_string = "fcifar", ABOUT
    del model.metadata_props[:]
    for name, value in sorted(about.items()):
        model.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_onnx(path: Path) -> Function:
    """The function in an ONNX file, computed by onnxruntime on as many threads as torch uses."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
