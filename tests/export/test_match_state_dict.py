"""Tensors fit the network that they are of, and else the first that does not is named."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fcifar import models, random, recipes
from fcifar.errors import UsageError
from fcifar.export import match_state_dict, state_dict
from fcifar.export.match_state_dict import Initial
from fcifar.export.state_dict import StateDict
from fcifar.models import Variables
from fcifar.recipes import Recipe
from tests.helpers.small import DEEPER, SMALL, chosen_models


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large networks in small forms are what there is to choose from."""
    small = {
        name: functools.partial(make, **SMALL[name]) if name in SMALL else make
        for name, make in models.MODELS.items()
        if name not in DEEPER
    }
    monkeypatch.setattr(match_state_dict, "MODELS", small)


def values_of(name: str, **options) -> dict[str, Tensor]:
    variables = models.MODELS[name](**options).init(random.key(0))
    return {**variables.params, **variables.buffers}


def found(values: object) -> tuple[StateDict, ...]:
    return state_dict.find(values, "net.pth")


def refused(tensors: dict[str, Tensor], recipe: Recipe, classes: int = 10) -> str:
    with pytest.raises(UsageError) as error:
        match_state_dict.fit(found(tensors), recipe, classes, "net.pth")
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("name", chosen_models("mlp_mixer"))
def test_every_network_fits_itself_and_is_recognised(name: str) -> None:
    options = SMALL.get(name, {})
    recipe = Recipe(name=name, model=name, model_options=options)
    tensors = values_of(name, **options)
    shuffled = dict(sorted(tensors.items(), reverse=True))
    variables, notes = match_state_dict.fit(found(shuffled), recipe, 10, "net.pth")
    assert notes == ()
    like = recipes.make_model(recipe, 10).init(random.key(0))
    assert (list(variables.params), list(variables.buffers)) == (
        list(like.params),
        list(like.buffers),
    )
    for value, expected in zip(
        (*variables.params.values(), *variables.buffers.values()),
        (*like.params.values(), *like.buffers.values()),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert list(match_state_dict.fitting_models(found(tensors), 10)) == [name]
    assert not list(match_state_dict.fitting_models(found(tensors), 11))


def test_the_first_that_does_not_fit_is_named() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    tensors = values_of("lenet")
    missing = {name: value for name, value in tensors.items() if name != "conv2.bias"}
    assert "there is no 'conv2.bias' in it" in refused(missing, lenet)
    assert "the model has no 'fc4.weight'" in refused(
        {**tensors, "fc4.weight": torch.ones(1)}, lenet
    )
    message = refused(values_of("lenet", hidden=100), lenet)
    assert "fc2.weight is [100, 120], not [84, 120]" in message
    assert "--set (hidden, dropout)" in message
    message = refused(values_of("conv3"), lenet)
    assert "conv1.weight is [16, 3, 3, 3], not [6, 3, 5, 5]" in message
    assert message.endswith("it fits --model conv3")
    assert "lenet with 7 classes: fc3.weight is [10, 84], not [7, 84]" in refused(
        tensors, lenet, classes=7
    )
    whole = {**tensors, "fc1.bias": torch.zeros(120, dtype=torch.int64)}
    assert "fc1.bias holds int64" in refused(whole, lenet)


def test_values_are_float32_with_memory_of_their_own() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    tensors = values_of("lenet")
    tensors["conv1.bias"] = tensors["conv1.bias"].double()
    tensors["conv2.bias"] = tensors["conv2.bias"].bfloat16()
    tensors["fc1.bias"] = torch.ones(()).expand(120)
    tensors["fc1.weight"] = tensors["fc1.weight"].T.contiguous().T
    variables, notes = match_state_dict.fit(found(tensors), lenet, 10, "net.pth")
    assert notes == ("took bfloat16 and float64 values of net.pth as float32",)
    for name, value in variables.params.items():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert value.data_ptr() != tensors[name].data_ptr()
        torch.testing.assert_close(value, tensors[name].float(), rtol=0, atol=0)


# What wrappers do to names ------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A network whose only child has the name that a wrapper might have."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


def small(inner: str = "") -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3))
    for value in module.state_dict().values():
        value.copy_(torch.randn(value.shape) * 9)
    return Wrapped(inner, module) if inner else module


def like_of(module: nn.Module) -> Variables:
    """Its names, with other values."""
    params = {name: torch.full_like(p, -1.0) for name, p in module.named_parameters()}
    return Variables(params, {name: torch.zeros_like(b) for name, b in module.named_buffers()})


def prefixed(prefix: str) -> Callable[[nn.Module], object]:
    return lambda module: {f"{prefix}{name}": v for name, v in module.state_dict().items()}


def inside(part: str) -> Callable[[nn.Module], object]:
    """As where the last child of a network is wrapped by itself."""
    return lambda module: {
        name.replace("2.weight", f"2.{part}.weight").replace("2.bias", f"2.{part}.bias"): value
        for name, value in module.state_dict().items()
    }


WRAPS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "plain": (lambda m: m.state_dict(), ""),
    "DataParallel": (lambda m: nn.DataParallel(m).state_dict(), "'module.' before the names"),
    "compiled": (prefixed("_orig_mod."), "'_orig_mod.' before the names"),
    "both": (prefixed("_orig_mod.module."), "'_orig_mod.module.' before the names"),
    "AveragedModel": (
        lambda m: AveragedModel(m).state_dict(),
        "left out n_averaged; left out 'module.' before the names",
    ),
    "Lightning": (
        lambda m: {
            "state_dict": {
                **{f"model.{name}": value for name, value in m.state_dict().items()},
                "criterion.weight": torch.ones(3),
            },
            "epoch": 3,
            "optimizer_states": [],
        },
        "took 'state_dict'; left out 'model.'; left out what is not under 'model.': "
        "'criterion.weight'",
    ),
    "two of them": (
        lambda m: {
            **{f"online.{name}": v + 1 for name, v in m.state_dict().items()},
            **{f"model.{name}": v for name, v in m.state_dict().items()},
        },
        "left out 'model.' before the names; left out what is not under 'model.': 'online.",
    ),
    "another word": (prefixed("backbone."), "'backbone.' before the names"),
    "an average beside it": (
        lambda m: {"ema": m.state_dict(), "state_dict": m.state_dict()},
        "took 'state_dict' out of the checkpoint; passed over 'ema'",
    ),
    "an average alone": (lambda m: {"ema": m.state_dict(), "step": 9}, "took 'ema'"),
    "another network beside it": (
        lambda m: {"net": nn.Linear(1, 1).state_dict(), "critic": m.state_dict()},
        "took 'critic'",
    ),
    "a part compiled": (inside("_orig_mod"), "'_orig_mod.' in the names"),
    "a part in parallel": (inside("module"), "'module.' in the names"),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("inner", ["", "net", "model", "module"])
def test_the_names_of_the_network_decide_what_is_taken_off(inner: str, wrap: str) -> None:
    module = small(inner)
    wrapped, said = WRAPS[wrap]
    variables, notes = match_state_dict.match(found(wrapped(module)), like_of(module), "net.pth")
    own = module.state_dict()
    for name, value in {**variables.params, **variables.buffers}.items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)
    assert all("net.pth" in note for note in notes)
    assert len(notes) == len([part for part in said.split("; ") if part])
    for note, part in zip(notes, said.split("; "), strict=bool(said)):
        for words in part.split(": "):
            assert words.removesuffix(" out of the checkpoint") in note


def test_counters_may_be_missing_or_more() -> None:
    module = small()
    plain = {n: v for n, v in module.state_dict().items() if "num_batches" not in n}
    variables, notes = match_state_dict.match(found(plain), like_of(module), "net.pth")
    assert notes == ("there is no num_batches_tracked in net.pth, on which no prediction depends",)
    assert variables.buffers["1.num_batches_tracked"] == 0
    without = like_of(module)
    del without.buffers["1.num_batches_tracked"]
    variables, notes = match_state_dict.match(found(module.state_dict()), without, "net.pth")
    assert notes == ("left out num_batches_tracked of net.pth, on which no prediction depends",)
    assert set(variables.buffers) == {"1.running_mean", "1.running_var"}


def test_each_value_has_the_dtype_of_the_network() -> None:
    module = small()
    module[2].register_buffer("index", torch.arange(3))
    halves = {name: value.half() for name, value in module.state_dict().items()}
    halves["2.index"] = torch.arange(3, dtype=torch.int32)
    halves["1.num_batches_tracked"] = torch.tensor(float("inf"), dtype=torch.float16)
    variables, notes = match_state_dict.match(found(halves), like_of(module), "net.pth")
    assert notes == (
        "took float16 values of net.pth as float32",
        "took float16 and int32 values of net.pth as int64",
    )
    assert {p.dtype for p in variables.params.values()} == {torch.float32}
    assert variables.buffers["2.index"].tolist() == [0, 1, 2]
    assert variables.buffers["1.num_batches_tracked"] == 0
    for name, wrong, message in (
        ("2.index", torch.rand(3), "2.index holds float32, not whole numbers"),
        ("0.weight", torch.zeros(2, 3, 1, 1).long(), "holds int64, not floating numbers"),
        ("0.weight", torch.zeros(2, 3, 1, 1) * 1j, "holds complex64, not floating numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            match_state_dict.match(found({**halves, name: wrong}), like_of(module), "net.pth")


def test_what_is_meant_must_be_clear() -> None:
    module, state = small(), small().state_dict()
    both = {f"{who}.{name}": v for name, v in state.items() for who in ("student", "teacher")}
    for values in (both, {"state_dict": both}, {"student": state, "teacher": {**state}}):
        with pytest.raises(UsageError, match=r"student.*teacher.*save the state_dict of one alone"):
            match_state_dict.match(found(values), like_of(module), "net.pth")


def test_the_closest_of_several_is_spoken_of() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    other = {f"module.{n}": v for n, v in values_of("lenet").items() if n != "fc3.bias"}
    message = refused({"metrics": {"loss": torch.ones(())}, "weights": other}, lenet)
    assert "net.pth does not fit lenet with 10 classes: there is no 'fc3.bias' in it" in message
    more = {**other, "module.fc3.bias": torch.ones(10), "module.fc4.bias": torch.ones(2)}
    assert "the model has no 'fc4.bias'" in refused(more, lenet)


# Values to begin training with -------------------------------------------------------------------


def initial(tensors: dict[str, Tensor], recipe: Recipe, classes: int, **options) -> Initial:
    options = {"partial": False, **options}
    return match_state_dict.match_initial(found(tensors), recipe, classes, "net.pth", **options)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_begins_with_another_head(name: str) -> None:
    recipe = Recipe(name=name, model=name, model_options=SMALL.get(name, {}))
    tensors = values_of(name, **SMALL.get(name, {}))
    values, drawn, notes = initial(tensors, recipe, 3)
    assert {*values, *drawn} == {*tensors}
    assert all(torch.equal(value, tensors[name]) for name, value in values.items())
    assert drawn
    assert all(tensors[name].shape[0] == 10 for name in drawn)
    (note,) = notes
    assert all(name in note for name in drawn)
    same, none, notes = initial(tensors, recipe, 10)
    assert same.keys() == tensors.keys()
    assert (none, notes) == ((), ())


def test_wrapped_values_are_begun_with() -> None:
    recipe = Recipe(name="resnet", model="resnet18", model_options=SMALL["resnet18"])
    tensors = values_of("resnet18", **SMALL["resnet18"])
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    wrapped |= {"module.bn1.num_batches_tracked": torch.tensor(3)}
    values, drawn, notes = initial({"epoch": 3, "model": wrapped}, recipe, 3)
    assert values.keys() | set(drawn) == tensors.keys()
    assert torch.equal(values["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])
    assert notes[0] == "took 'model' out of the checkpoint net.pth"


def test_everything_that_does_not_fit_is_listed_and_may_be_drawn() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    tensors = values_of("lenet", hidden=100)
    del tensors["conv1.bias"]
    tensors["fc4.weight"] = torch.ones(2)
    with pytest.raises(UsageError) as error:
        initial(tensors, lenet, 10)
    message = str(error.value)
    assert message.startswith("net.pth does not fit lenet with 10 classes: ")
    for part in (
        "there is no conv1.bias in it",
        "fc2.weight is float32 [100, 120] and not float32 [84, 120]",
        "the model has no 'fc4.weight'",
        "or --init-partial to take what fits",
    ):
        assert part in message
    values, drawn, (note,) = initial(tensors, lenet, 10, partial=True)
    assert "conv1.bias" in drawn
    assert values.keys().isdisjoint(drawn)
    assert note.startswith("drew conv1.bias, fc2.weight, fc2.bias, fc3.weight anew")


def test_a_model_of_which_nothing_fits_is_refused() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    with pytest.raises(UsageError, match="does not fit lenet") as error:
        initial({"a": torch.ones(3)}, lenet, 10, partial=True)
    assert "--init-partial" not in str(error.value)


def test_frozen_parameters_are_begun_with_too() -> None:
    recipe = Recipe(name="lenet", model="lenet", freeze=("conv*",))
    tensors = values_of("lenet")
    values, drawn, _ = initial(tensors, recipe, 3)
    assert {*values, *drawn} == {*tensors}
    assert torch.equal(values["conv1.weight"], tensors["conv1.weight"])
