"""What is exported is the same function elsewhere, or is not there at all."""

import importlib.util
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from fcifar import random, recipes, tree
from fcifar.data import Split, make_dataset
from fcifar.errors import ExternalError, UsageError
from fcifar.export import exporting, load, match_state_dict, state_dict
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import inference
from fcifar.runs.inference import Trained, predict
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.small import SMALL, chosen_models

CLASSES = tuple("abcdefghij")
MODELS = chosen_models("resnet18", "wrn", "mlp_mixer")
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


@pytest.mark.parametrize("name", chosen_models())
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
    again = inference.load(tmp_path / "new/net.safetensors")
    assert again[3:] == network[3:]
    assert again.recipe == network.recipe
    assert tree.equal(again.variables, network.variables)


@pytest.mark.parametrize("name", MODELS)
def test_pt2_is_the_whole_function(name: str, tmp_path: Path) -> None:
    network, path = make_network(name), tmp_path / "net.pt2"
    agreement = exporting.export(network, path, draw(8))
    assert agreement.different == 0
    extra = {exporting.METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra[exporting.METADATA])
    assert json.loads(about["classes"]) == list(CLASSES)
    assert json.loads(about["mean"]) == [0.4, 0.5, 0.6]
    assert about["params_digest"] == tree.digest(network.variables.params)
    for count in (1, 3):
        images = draw(count)
        torch.testing.assert_close(program.module()(images), logits(network, images))
    assert set(network.variables.params) <= set(program.state_dict)
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


@needs_onnx
@pytest.mark.parametrize("name", MODELS)
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
    found = state_dict.read(tmp_path / "theirs.pth")
    variables, notes = match_state_dict.fit(found, network.recipe, 10, "theirs.pth")
    assert "left out num_batches_tracked" in notes[0]
    assert tree.equal(variables, network.variables)


@pytest.mark.parametrize("suffix", [".pth", ".pt2"])
def test_what_predicts_otherwise_does_not_stay(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, path = exporting.FORMATS[suffix], tmp_path / f"net{suffix}"

    def read(path: Path, network: Trained) -> exporting.Function:
        return lambda images: form.read(path, network)(images).flip(-1)

    monkeypatch.setitem(exporting.FORMATS, suffix, form._replace(read=read))
    for force in (False, True):
        with pytest.raises(
            ExternalError, match=r"predicts another class for \d of 8 images"
        ) as error:
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
    with pytest.raises(ExternalError, match=r"as torch\.export this model cannot be") as error:
        exporting.export(broken, tmp_path / "net.pt2", draw(2))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fcifar.errors import ExternalError
from fcifar.export import exporting
from tests.export.test_exporting import draw, make_network

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for name in sys.argv[1:]:
    try:
        exporting.export(make_network("lenet"), Path(name), draw(2))
    except ExternalError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Also where torch's own writer would end the process."""
    names = ["net.pth", "net.safetensors", "net.pt2"]
    words = [sys.executable, "-c", FULL_DISK, *(str(tmp_path / name) for name in names)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"cannot write {tmp_path / name}: "), line
        assert "free some space" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_kept_and_a_name_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"mine")
    with pytest.raises(UsageError, match="already exists; choose another name, or give --force"):
        exporting.check(tmp_path / "net.pth", force=False)
    assert exporting.check(tmp_path / "net.PTH", force=False).name == "state_dict"
    with pytest.raises(UsageError, match=r"must end in \.pth, \.safetensors, \.onnx, \.pt2$"):
        exporting.check(tmp_path / "net.h5", force=True)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'fcifar\[onnx\]', or choose"):
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


# There and back -----------------------------------------------------------------------------------


class Net(nn.Module):
    """README's."""

    def __init__(self, num_classes: int = 10, width: int = 16, rate: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 5, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(rate), nn.Linear(width * 49, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.max_pool2d(self.features(x), 2).flatten(1))


class Wrapped(nn.Module):
    """A network with an only child of a name that wrappers have, too."""

    def __init__(self, child: str, inner: nn.Module | None = None, num_classes: int = 10) -> None:
        super().__init__()
        self.child = child
        self.add_module(child, inner or Net(num_classes, width=4))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.child)(x)


def wrapped_twice(num_classes: int = 10) -> nn.Module:
    return Wrapped("module", Wrapped("model", num_classes=num_classes))


class Frozen(nn.Module):
    """With a frozen parameter, a buffer of whole numbers, and a tensor in no state_dict."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.conv.weight.requires_grad = False
        self.norm = nn.GroupNorm(2, 8)
        self.register_buffer("order", torch.arange(63, -1, -1))
        self.register_buffer("scale", torch.full((8, 1), 0.5), persistent=False)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(2)[:, :, self.order]
        return self.head((x * self.scale).relu().flatten(1))


class Attention(nn.Module):
    """Whose layers have parameters of their own, not only children."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.places = nn.Parameter(torch.zeros(1, 16, 16))
        self.net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.num_batches = nn.LayerNorm(16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.num_batches(self.net(x)).mean(1))


HERE = "tests.export.test_exporting"
CHEAP: dict[str, dict[str, object]] = {
    f"{HERE}:Net": {"width": 8},
    f"{HERE}:Wrapped net": {"child": "net"},
    f"{HERE}:Wrapped model": {"child": "model"},
    f"{HERE}:Wrapped module": {"child": "module"},
    f"{HERE}:wrapped_twice": {},
    f"{HERE}:Frozen": {},
    f"{HERE}:Attention": {},
}
LARGE: dict[str, dict[str, object]] = {
    "torchvision.models:resnet18": {},
    "torchvision.models:mnasnet0_5": {},
    "torchvision.models:mobilenet_v2": {},
    "torchvision.models:mobilenet_v3_small": {},
    "torchvision.models:shufflenet_v2_x0_5": {},
    "torchvision.models:densenet121": {},
    "torchvision.models:efficientnet_b0": {},
    "torchvision.models:regnet_y_400mf": {},
    "torchvision.models:convnext_tiny": {},
    **{
        f"timm:create_model {name}": {"model_name": name}
        for name in (
            *("resnet10t", "mobilenetv3_small_050", "lcnet_035", "tinynet_e", "ghostnet_050"),
            *("regnetx_002", "mobilenetv2_035", "convnext_atto", "repvgg_a0"),
        )
    },
    "timm:create_model vit": {
        "model_name": "vit_tiny_patch16_224",
        "img_size": 32,
        "patch_size": 8,
        "depth": 2,
    },
}
"""By a text for --model, behind which may stand a word that tells two of them apart."""


def of_test(name: str) -> Recipe:
    options = (CHEAP | LARGE)[name]
    return Recipe(
        name=name,
        model=name.partition(" ")[0],
        model_options=options,
        batch_size=8,
        epochs=1,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )


@pytest.mark.parametrize(
    "name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_foreign_networks_there_and_back(name: str, make_batch, tmp_path: Path) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm: pip install timm")
    recipe, runtime = of_test(name), Runtime(threads=1)
    train, test = make_batch(16, seed=1), make_batch(23, seed=2)  # two whole batches
    tiny = make_dataset("tiny", Split(*train), Split(*test), CLASSES, "tests")
    report = loop.train(tmp_path / "run", make_config(recipe, tiny, runtime=runtime), tiny)
    network = inference.load(tmp_path / "run")
    _, factory = recipes.imported("the model", recipe.model)
    module = factory(**recipe.model_options, num_classes=10)
    for suffix, read in ((".pth", torch.load), (".safetensors", load_file)):
        path = tmp_path / f"net{suffix}"
        assert exporting.export(network, path, test.images).different == 0
        values = read(path)
        if suffix == ".pth":
            assert values._metadata == module.state_dict()._metadata
        elif "mnasnet" in name:  # which loads nothing without a version
            values = OrderedDict(values)
            values._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
        loaded = module.load_state_dict(values, strict=True)
        assert str(loaded) == "<All keys matched successfully>"
        with torch.no_grad():
            theirs = module.eval()(recipes.make_preprocess(recipe)(test.images))
        torch.testing.assert_close(theirs, logits(network, test.images), rtol=1e-4, atol=1e-4)
    torch.save(module.state_dict(), tmp_path / "theirs.pth")
    for back in ("net.pth", "theirs.pth"):
        again, notes = load.with_classes(load.load(tmp_path / back, recipe), CLASSES)
        assert notes == ()
        assert tree.equal(again.variables, network.variables)
        figures, _ = inference.evaluate(again, runtime, tiny, "test")
        assert figures["loss"] == report["test_loss"]
        assert figures["params_digest"] == report["params_digest"]
