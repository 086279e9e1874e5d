"""What is exported is the same function elsewhere, or is not there at all."""

import importlib.util
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from fcifar import models, random, recipes, tree
from fcifar.errors import UserError, WorldError
from fcifar.interop import exporting, fitting, functions, state_dicts
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import trained
from fcifar.runs.predict import predict
from fcifar.runs.runtime import Runtime
from fcifar.runs.trained import Trained
from tests.small import SMALL

CLASSES = tuple("abcdefghij")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx: pip install 'fcifar[onnx]'",
)


def make_network(name: str, **options) -> Trained:
    """With statistics that batch norm does not begin with."""
    options = {**SMALL.get(name, {}), **options}
    recipe = Recipe(
        name=name, model=name, model_options=options, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
    )
    model = recipes.make_model(recipe, 10)
    params, buffers = model.init(random.key(3))
    keys = random.split(random.key(4), len(buffers)) if buffers else ()
    changed = {
        name: value if name.startswith("whiten") else value + random.uniform(k, value.shape)
        for (name, value), k in zip(buffers.items(), keys, strict=True)
    }
    return Trained(recipe, model, Variables(params, changed), CLASSES, "tiny", "12ab", 7)


def draw(count: int) -> Tensor:
    return random.randint(random.key(1), (count, 3, 32, 32), 0, 256).byte()


def logits(network: Trained, images: Tensor) -> Tensor:
    return predict(network, Runtime(), images)


@pytest.mark.parametrize("name", models.MODELS)
def test_pth_and_safetensors_hold_the_values(name: str, tmp_path: Path) -> None:
    network, images = make_network(name), draw(8)
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"new/net{suffix}"
        agreement = exporting.export(network, path, images)
        assert (agreement.images, agreement.different) == (8, 0)
        first = path.read_bytes()
        exporting.export(network, path, images, force=True)
        assert path.read_bytes() == first, "the same network makes the same bytes"
    values = {**network.variables.params, **network.variables.buffers}
    plain = torch.load(tmp_path / "new/net.pth", weights_only=True)
    assert type(plain) is OrderedDict, "as that of a module is"
    assert tree.equal(dict(plain), values)
    assert list(plain._metadata) == [name for name, _ in network.model.versions]
    assert tree.equal(load_file(tmp_path / "new/net.safetensors"), values)
    again = trained.load(tmp_path / "new/net.safetensors")
    assert again[3:] == network[3:]
    assert again.recipe == network.recipe
    assert tree.equal(again.variables, network.variables)


@pytest.mark.parametrize("name", models.MODELS)
def test_pt2_is_the_whole_function(name: str, tmp_path: Path) -> None:
    network, path = make_network(name), tmp_path / "net.pt2"
    agreement = exporting.export(network, path, draw(8))
    assert agreement.different == 0
    extra = {functions.HEAD: ""}
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra[functions.HEAD])
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["mean"]) == [0.4, 0.5, 0.6]
    assert about["params_digest"] == tree.digest(network.variables.params)
    for count in (1, 3):
        images = draw(count)
        torch.testing.assert_close(program.module()(images), logits(network, images))
    assert set(network.variables.params) <= set(program.state_dict)
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


@needs_onnx
@pytest.mark.parametrize("name", models.MODELS)
def test_onnx_is_the_whole_function(name: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    network, path = make_network(name), tmp_path / "net.onnx"
    agreement = exporting.export(network, path, draw(8))
    assert agreement.different == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ((name_in, shape_in, kind),) = [(i.name, i.shape, i.type) for i in session.get_inputs()]
    assert (name_in, shape_in, kind) == ("images", ["N", 3, 32, 32], "tensor(uint8)")
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["N", 10])]
    for count in (1, 3):
        images = draw(count)
        (found,) = session.run(None, {"images": images.numpy()})
        expected = logits(network, images)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["std"]) == [0.2, 0.3, 0.25]
    assert about["params_digest"] == tree.digest(network.variables.params)
    weights = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert {n for n, v in network.variables.params.items() if v.ndim == 4} <= weights
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


@needs_onnx
def test_onnx_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        exporting.export(make_network("lenet"), tmp_path / name, draw(2))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_resnet_is_torchvisions_and_back(tmp_path: Path) -> None:
    """The same names and values, with torchvision's counters or without."""
    network, images = make_network("resnet18", width=64), draw(3)
    exporting.FORMATS[".pth"].write(network, {}, tmp_path / "net.pth")
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    loaded = theirs.load_state_dict(torch.load(tmp_path / "net.pth"))
    assert str(loaded) == "<All keys matched successfully>"
    theirs.eval()
    with torch.no_grad():
        x = recipes.make_preprocess(network.recipe)(images)
        expected, _ = network.model.apply(network.variables, x)
        torch.testing.assert_close(theirs(x), expected, rtol=1e-4, atol=1e-4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    found = state_dicts.read(tmp_path / "theirs.pth")
    variables, notes = fitting.fit(found, network.recipe, 10, "theirs.pth")
    assert "left out num_batches_tracked" in notes[0]
    assert tree.equal(variables, network.variables)


@pytest.mark.parametrize("suffix", [".pth", ".pt2"])
def test_what_predicts_otherwise_does_not_stay(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, path = exporting.FORMATS[suffix], tmp_path / f"net{suffix}"

    def read(path: Path, network: Trained) -> functions.Function:
        return lambda images: form.read(path, network)(images).flip(-1)

    monkeypatch.setitem(exporting.FORMATS, suffix, form._replace(read=read))
    for force in (False, True):
        with pytest.raises(WorldError, match=r"predicts another class for \d of 8 images") as error:
            exporting.export(make_network("lenet"), path, draw(8), force=force)
        assert str(error.value).isprintable()
        if not force:
            assert list(tmp_path.iterdir()) == []
        else:
            assert path.read_bytes() == b"mine", "what was there is still there"
        path.write_bytes(b"mine")
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    network = make_network("lenet")

    def apply(variables, images, *, key=None, train=False):
        raise RuntimeError("what\nis this")

    broken = network._replace(model=network.model._replace(apply=apply))
    with pytest.raises(WorldError, match=r"as torch\.export this network cannot be") as error:
        exporting.export(broken, tmp_path / "net.pt2", draw(2))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_kept_and_a_name_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already; choose another name, or give --force"):
        exporting.check(tmp_path / "net.pth", force=False)
    assert exporting.check(tmp_path / "net.PTH", force=False).name == "state_dict"
    with pytest.raises(UserError, match=r"must end in \.pth, \.safetensors, \.onnx, \.pt2$"):
        exporting.check(tmp_path / "net.h5", force=True)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fcifar\[onnx\]', or choose"):
        exporting.check(tmp_path / "net.onnx", force=False)


def test_agreement() -> None:
    ours = torch.tensor([[0.0, 1.0], [2.0, 1.0], [float("nan"), 0.0]])
    assert exporting.compare(ours, ours.clone()) == (3, 0, 0.0)
    theirs = ours + torch.tensor([[0.0, 0.0], [-1.5, 0.0], [0.0, 0.0]])
    assert exporting.compare(ours, theirs) == (3, 1, 1.5)


def test_the_images_to_check_with_are_from_everywhere() -> None:
    images = torch.arange(2500)
    chosen = exporting.some_of(images)
    assert len(chosen) == 1000
    assert chosen.unique().numel() == 1000
    assert (chosen[0], chosen[-1]) == (0, 2497)
    assert exporting.some_of(images[:7]).tolist() == list(range(7))
