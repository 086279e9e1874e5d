"""Exporting a trained network: written, read back, and put to the test before it stays."""

import importlib.util
import io
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

import fcifar
from fcifar import recipes, tensor_files, tree
from fcifar.errors import ExternalError, UsageError, one_line, reason
from fcifar.export import graphs, state_dict
from fcifar.export.graphs import Function
from fcifar.io import replacing
from fcifar.models import Variables
from fcifar.runs.inference import Trained, predict
from fcifar.step import normalize
from fcifar.train.runtime import Runtime, activate

CHECKED = 1000  # images at most
_BATCH = 300  # no divisor of it, so that a last batch of another size is tried as well


class Format(NamedTuple):
    """A kind of file that a network is written to."""

    name: str
    write: Callable[[Trained, dict[str, str], Path], None]
    read: Callable[[Path, Trained], Function]
    modules: tuple[str, ...] = ()  # of the extra that it needs
    extra: str = ""


class Agreement(NamedTuple):
    """How far two networks agree on the same images."""

    images: int
    different: int  # predictions
    largest_difference: float  # of two logits; NaN if one is not finite where the other is


def describe(network: Trained) -> dict[str, str]:
    """What a reader needs to use a network, and where it comes from; lists and recipe as JSON."""
    recipe = network.recipe
    return {
        "fcifar": fcifar.__version__,
        "model": recipe.model,
        "mean": json.dumps(recipe.mean),
        "std": json.dumps(recipe.std),
        "classes": json.dumps(network.classes),
        "recipe": json.dumps(recipes.to_dict(recipe)),
        "seed": str(network.seed),
        "dataset": network.dataset,
        "dataset_digest": network.dataset_digest,
        "params_digest": tree.digest(network.variables.params),
    }


def _named(network: Trained) -> dict[str, Tensor]:
    """Parameters and buffers as a state_dict, each with memory of its own."""
    both = {**network.variables.params, **network.variables.buffers}
    return {name: value.detach().contiguous().clone() for name, value in both.items()}


def _write_pth(network: Trained, about: dict[str, str], path: Path) -> None:
    values = OrderedDict(_named(network))
    if versions := network.model.versions:  # some modules load nothing without theirs
        metadata = OrderedDict((name, {"version": number}) for name, number in versions)
        values._metadata = metadata  # type: ignore[attr-defined]  # where torch has them
    buffer = io.BytesIO()  # and not the file: its name would be inside, and see graphs.write_pt2
    torch.save(values, buffer)
    path.write_bytes(buffer.getbuffer())


def _write_safetensors(network: Trained, about: dict[str, str], path: Path) -> None:
    tensor_files.write(path, _named(network), about)


def _read_state_dict(path: Path, network: Trained) -> Function:
    """The network's function with the values in a file, and with the bits they had."""
    tensors = state_dict.read(path)[0].tensors
    if not tree.equal(tensors, _named(network)):
        raise ValueError("the file does not hold what was written")
    params, buffers = ({name: tensors[name] for name in part} for part in network.variables)
    preprocess = normalize(tuple(network.recipe.mean), tuple(network.recipe.std))
    values = Variables(params, buffers)
    return lambda images: network.model.apply(values, preprocess(images), train=False)[0]


FORMATS: dict[str, Format] = {
    ".pth": Format("state_dict", _write_pth, _read_state_dict),
    ".safetensors": Format("safetensors", _write_safetensors, _read_state_dict),
    ".onnx": Format(
        "ONNX",
        graphs.write_onnx,
        lambda path, _: graphs.read_onnx(path),
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
    ),
    ".pt2": Format("torch.export", graphs.write_pt2, lambda path, _: graphs.read_pt2(path)),
}


def check(path: Path, *, force: bool) -> Format:
    """The format that the name of ``path`` ends in, which may be written there.

    Raises:
        UsageError: it is none of ``FORMATS``, something that it needs is not installed, or there is
            a file already and ``force`` is not set.
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
            f"'fcifar[{form.extra}]', or choose .pth, .safetensors or .pt2"
        )
    check_free(path, force=force)
    return form


def check_free(path: Path, *, force: bool) -> None:
    """Raise a UsageError where there is a file that may not be written over."""
    if not force and (path.exists() or path.is_symlink()):
        raise UsageError(f"{one_line(path)} is there already; choose another name, or give --force")


def export(
    network: Trained, path: Path, images: Tensor, *, threads: int = 1, force: bool = False
) -> Agreement:
    """Write a network, read it back, and compare the two on images; float32, on the CPU.

    The file appears whole, and only if each image has the same prediction.

    Args:
        path: its name says which of ``FORMATS`` it becomes.
        images: uint8 [N, 3, 32, 32], one or more.

    Raises:
        UsageError: as ``check``.
        ExternalError: the disk refused, the network cannot be written in that format, or what was
            read back predicts another class.
    """
    form = check(path, force=force)
    runtime = Runtime(threads=threads)
    with replacing(path) as temporary:
        with activate(runtime), torch.no_grad():
            try:
                form.write(network, describe(network), temporary)
                function = form.read(temporary, network)
                found = torch.cat([function(part) for part in images.split(_BATCH)])
            except (OSError, SafetensorError, ExternalError):
                raise
            except Exception as error:  # converters fail in many ways, and none is ours to mend
                raise ExternalError(
                    f"{one_line(path)} is not written: as {form.name} this model cannot be "
                    f"exported ({reason(error)}); choose another format"
                ) from error
        agreement = compare(predict(network, runtime, images), found)
        if agreement.different:
            raise ExternalError(
                f"{one_line(path)} is not written: read back, it predicts another class for "
                f"{agreement.different:,} of {agreement.images:,} images (logits differ by up to "
                f"{agreement.largest_difference:.2g}); choose another format"
            )
    return agreement


def compare(ours: Tensor, theirs: Tensor) -> Agreement:
    """Two sets of logits [N, C] of the same images."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(same, 0.0, (ours.double() - theirs.double()).abs())
    different = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    return Agreement(len(ours), int(different), float(difference.max()))


def some_of(images: Tensor, count: int = CHECKED) -> Tensor:
    """Up to ``count`` images, evenly from all of them, for a data set may be sorted by class."""
    rows = torch.arange(min(count, len(images))) * len(images) // min(count, len(images))
    return images[rows]


def summary(network: Trained, path: Path, agreement: Agreement) -> dict[str, Any]:
    """What was exported, as values that JSON holds."""
    return {
        "path": str(path),
        "format": FORMATS[path.suffix.lower()].name,
        "bytes": path.stat().st_size,
        "model": network.recipe.model,
        "classes": list(network.classes),
        "mean": list(network.recipe.mean),
        "std": list(network.recipe.std),
        "params_digest": tree.digest(network.variables.params),
        "check": {**agreement._asdict(), "same_predictions": agreement.different == 0},
    }
