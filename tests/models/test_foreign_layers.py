"""Layers and habits of ``nn.Module`` that need a pure form of their own: each equals torch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fcifar import optim, random, tree
from fcifar.models import Model, Variables, from_module
from fcifar.models.from_module.functionalize import Forward
from fcifar.precision import BF16, FP64
from fcifar.step import init_train_state, make_eval_step, make_train_step, normalize


class Net(nn.Module):
    """A convolution and a linear layer, with what a test gives it."""

    def __init__(
        self,
        made: Callable[[Any], Any] = lambda net: None,
        called: Callable[[Any, Tensor], Tensor] = lambda net, x: x,
    ) -> None:
        super().__init__()
        self.conv, self.fc, self.called = nn.Conv2d(3, 4, 3, 8), nn.Linear(64, 10), called
        made(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.called(self, x)).flatten(1))


def _attributes(**values: Callable[[], Any]) -> Callable[[Any], None]:
    def made(net: Any) -> None:
        for name, value in values.items():
            setattr(net, name, value())

    return made


def _rows(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A recurrent layer over the 32 rows of an image."""

    def called(net: Any, x: Tensor) -> Tensor:
        y, _ = net.layer(x.transpose(1, 2).flatten(2))
        return y.unflatten(2, (3, -1)).transpose(1, 2)

    return lambda: Net(_attributes(layer=layer), called)


def _cell(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def called(net: Any, x: Tensor) -> Tensor:
        state = None
        for row in x.transpose(1, 2).flatten(2).unbind(1)[:3]:
            state = net.layer(row, state)
        h = state[0] if isinstance(state, tuple) else state
        return x + h.reshape(-1, 3, 1, 32)

    return lambda: Net(_attributes(layer=layer), called)


def _scale(net: Any) -> None:
    net.scale = nn.Parameter(torch.ones(()))


def _shared_list(net: Any) -> None:
    _scale(net)
    net.list, net.tuple = [net.scale, torch.ones(3, 1, 1)], (net.scale, 3)
    net.dict = {"nested": [net.conv.bias]}


def _by_hook(net: Any) -> None:
    _scale(net)
    net.conv.register_forward_hook(lambda layer, inputs, output: output * net.scale)


def _by_lambda(net: Any) -> None:
    _scale(net)
    net.scaled = lambda x: x * net.scale


def _tied(net: Any) -> None:
    net.again, net.other = net.fc, nn.Linear(64, 10)
    net.other.weight = net.fc.weight


def _filled(net: Any, x: Tensor) -> Tensor:
    """By caches of the three kinds."""
    if str(x.device) not in net.tables:
        net.tables[str(x.device)] = torch.arange(32, dtype=x.dtype, device=x.device)
    if net.table is None:
        net.table = torch.ones_like(x[0])
    if net.sized.shape != x.shape[1:]:
        net.sized = torch.full_like(x[0], 2)
    return (x + net.tables[str(x.device)] / 32) * net.table * net.sized


def _deformed(net: Any, x: Tensor) -> Tensor:
    return net.layer(x, net.offset(x), torch.sigmoid(net.mask(x)))


MADE: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: Net(lambda net: parametrizations.spectral_norm(net.conv)),
    "spectral norm, twice": lambda: Net(
        lambda net: parametrizations.spectral_norm(net.fc, n_power_iterations=2, dim=1)
    ),
    "orthogonal": lambda: Net(lambda net: parametrizations.orthogonal(net.fc)),
    "lstm": _rows(lambda: nn.LSTM(96, 96, 2, batch_first=True)),
    "lstm, both ways": _rows(lambda: nn.LSTM(96, 48, 2, batch_first=True, bidirectional=True)),
    "lstm, projected": _rows(lambda: nn.LSTM(96, 100, batch_first=True, proj_size=96, bias=False)),
    "gru": _rows(lambda: nn.GRU(96, 48, 2, batch_first=True, bidirectional=True)),
    "rnn": _rows(lambda: nn.RNN(96, 96, nonlinearity="relu", batch_first=True)),
    "lstm cell": _cell(lambda: nn.LSTMCell(96, 96)),
    "gru cell": _cell(lambda: nn.GRUCell(96, 96)),
    "rnn cell": _cell(lambda: nn.RNNCell(96, 96)),
    "deformed": lambda: Net(
        _attributes(
            offset=lambda: nn.Conv2d(3, 18, 3, padding=1),
            mask=lambda: nn.Conv2d(3, 9, 3, padding=1),
            layer=lambda: torchvision.ops.DeformConv2d(3, 6, 3, padding=1, groups=3),
            conv=lambda: nn.Conv2d(6, 4, 3, 8),
        ),
        _deformed,
    ),
    "layout": lambda: Net(
        called=lambda net, x: (
            2
            * x.contiguous(memory_format=torch.channels_last).to(memory_format=torch.channels_last)
        )
    ),
    "layout asked": lambda: Net(
        called=lambda net, x: x if x.is_contiguous(memory_format=torch.channels_last) else 2 * x
    ),
    "lists": lambda: Net(
        _shared_list,
        lambda net, x: x * net.list[0] * net.list[1] * net.tuple[0] + net.dict["nested"][0].mean(),
    ),
    "hook": lambda: Net(_by_hook),
    "lambda": lambda: Net(_by_lambda, lambda net, x: net.scaled(x)),
    "tied": lambda: Net(_tied, lambda net, x: x + net.other.weight.mean() + net.other.bias.sum()),
    "caches": lambda: Net(
        _attributes(tables=dict, table=lambda: None, sized=lambda: torch.zeros(1)), _filled
    ),
    "compiled": lambda: Net(
        _attributes(layer=lambda: torch.compile(nn.Conv2d(3, 3, 1))), lambda net, x: net.layer(x)
    ),
    "complex": lambda: Net(
        _attributes(w=lambda: nn.Parameter(torch.randn(3, 1, 1, dtype=torch.cfloat))),
        lambda net, x: (x * net.w).abs(),
    ),
}


@pytest.fixture(params=MADE, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Model:
    return from_module(MADE[name])


def module_of(name: str, variables: Variables) -> nn.Module:
    """The module itself with these values; a tensor of several names has the first in them."""
    module = MADE[name]()
    missing, unknown = module.load_state_dict(
        {**variables.params, **variables.buffers}, strict=False
    )
    assert not unknown
    assert bool(missing) == (name == "tied")
    return module


def test_steps_equal_those_of_the_module(name: str, model: Model, make_batch) -> None:
    """In float64: gradients, and buffers that a step changes."""
    state = init_train_state(model, optim.sgd(0.05), key=random.key(0), policy=FP64)
    step = make_train_step(model, optim.sgd(0.05), policy=FP64)
    twin = module_of(name, state.variables).double().train()
    if name == "complex":
        twin.w.data = state.variables.params["w"].to(torch.cdouble)
        state.variables.params["w"] = state.variables.params["w"].to(torch.cdouble)
    if name == "compiled":
        twin.layer = twin.layer._orig_mod
    theirs = torch.optim.SGD(twin.parameters(), 0.05)
    for i in range(2):
        batch = make_batch(3, seed=i)
        kept = tree.map(torch.clone, state)
        after, _ = step(state, batch)
        assert tree.equal(state, kept)
        assert tree.equal(after, step(state, batch)[0])
        state = after
        theirs.zero_grad()
        images = normalize()(batch.images).double()
        nn.functional.cross_entropy(twin(images), batch.labels).backward()
        theirs.step()
    values = {n.replace("_orig_mod.", ""): v for part in state.variables for n, v in part.items()}
    for n, value in twin.state_dict().items():
        if n in values:
            torch.testing.assert_close(values[n], value, rtol=1e-7, atol=1e-9, msg=n)
    moved = {n for n, v in state.variables.buffers.items() if not torch.equal(v, kept[1][1][n])}
    assert moved == {n for n in state.variables.buffers if n.endswith(("._u", "._v"))}
    trained = state.variables.params
    assert not any(torch.equal(trained[n], kept[1][0][n]) for n in trained), "each is trained"
    batch = make_batch(3)
    logits = make_eval_step(model, policy=FP64)(state.variables, batch).logits
    with torch.no_grad():
        expected = twin.eval()(normalize()(batch.images).double())
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_it_maps_over_seeds(name: str, model: Model, make_batch) -> None:
    """What starts a run, too: ``init`` of several keys."""
    keys = random.split(random.key(1), 2)
    many = torch.vmap(model.init)(keys)
    for i, key in enumerate(keys):
        assert tree.equal(tree.map(lambda v, i=i: v[i], many), model.init(key))
    optimizer, batch = optim.sgd(0.05), make_batch(2)
    step = make_train_step(model, optimizer)
    states = [init_train_state(model, optimizer, key=key) for key in keys]
    stacked = tree.map(lambda *xs: torch.stack(xs), *states)
    together, _ = torch.vmap(step, in_dims=(0, None))(stacked, batch)
    for i, state in enumerate(states):
        alone, _ = step(state, batch)
        for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["spectral norm", "lstm", "deformed"], indirect=True)
def test_it_computes_in_bfloat16_and_its_buffers_move(name: str, model: Model, make_batch) -> None:
    state = init_train_state(model, optim.sgd(0.05), key=random.key(0))
    after, _ = make_train_step(model, optim.sgd(0.05), policy=BF16)(state, make_batch(4))
    for old, new in zip(tree.leaves(state), tree.leaves(after), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
    for n, vector in after.variables.buffers.items():
        assert not torch.equal(vector, state.variables.buffers[n]), n
        torch.testing.assert_close(vector.norm(), torch.ones(()), rtol=0, atol=1e-5)
    make_eval_step(model, policy=BF16)(after.variables, make_batch(2))


@pytest.mark.parametrize(
    "name",
    [
        *("spectral norm", "gru cell", "lists", "tied", "caches"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "hook", "compiled")),
    ],
    indirect=True,
)
def test_it_compiles_to_one_graph(name: str, model: Model, make_batch) -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    optimizer = optim.sgd(0.05)
    step = make_train_step(model, optimizer)
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    state = other = init_train_state(model, optimizer, key=random.key(0))
    for i in range(2):
        state, _ = compiled(state, make_batch(3, seed=i))
        other, _ = step(other, make_batch(3, seed=i))
    for a, b in zip(tree.leaves(state), tree.leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(graphs) == 1


def test_dropout_between_recurrent_layers_is_keyed() -> None:
    layer = nn.LSTM(4, 4, 2, dropout=0.5)
    x = random.normal(random.key(0), (5, 2, 4))

    def run(seed: int) -> Tensor:
        with Forward(random.key(seed), {}, {}):
            return layer(x)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    with (
        pytest.raises(ValueError, match="packed sequences are not supported"),
        Forward(None, {}, {}),
    ):
        layer(packed)


def test_complex_parameters_start_as_torchs() -> None:
    """Both parts are drawn: with half the variance each, or uniform each."""

    def made(net: Any) -> None:
        net.normal = nn.Parameter(torch.randn(100, 100, dtype=torch.cfloat))
        net.filled = nn.Parameter(torch.empty(100, 100, dtype=torch.cfloat).normal_(1, 2))
        net.uniform = nn.Parameter(torch.rand(100, 100, dtype=torch.cfloat))

    params = from_module(lambda: Net(made)).init(random.key(0)).params
    torch.manual_seed(0)
    theirs = Net(made)
    for name in ("normal", "filled", "uniform"):
        own, other = params[name], getattr(theirs, name).detach()
        for a, b in ((own.real, other.real), (own.imag, other.imag)):
            assert abs(a.std() / b.std() - 1) < 0.05, name
            assert abs(a.mean() - b.mean()) < 0.05, name
        parts = torch.stack([own.real.flatten(), own.imag.flatten()])
        assert torch.corrcoef(parts)[0, 1].abs() < 0.05, name


def test_a_draw_that_is_overwritten_is_left_out_and_one_that_is_seen_is_not() -> None:
    """An initialiser after another; one that is read, by torch and by numpy, before it."""

    def made(net: Any) -> None:
        first = nn.init.normal_(torch.empty(8, 8))
        net.doubled = nn.Parameter(2 * first)
        second = nn.init.normal_(torch.empty(8, 8))
        net.shifted = nn.Parameter(torch.tensor(second.numpy() + 1))
        half = nn.init.normal_(torch.empty(8, 8))
        half[:4].zero_()
        net.part = nn.Parameter(half)
        twice = nn.init.normal_(torch.empty(8, 8))
        net.twice = nn.Parameter(nn.init.uniform_(twice))

    key = random.key(3)
    params = from_module(lambda: Net(made)).init(key).params
    drawn = [random.normal(random.fold_in(key, i), (8, 8)) for i in range(4, 8)]  # after two layers
    assert torch.equal(params["doubled"], 2 * drawn[0])
    assert torch.equal(params["shifted"], drawn[1] + 1)
    assert torch.equal(params["part"][4:], drawn[2][4:])
    assert not params["part"][:4].any()
    assert torch.equal(params["twice"], random.uniform(random.fold_in(key, 8), (8, 8)))
