"""Any ``nn.Module`` as a ``Model``: the contracts over torchvision's networks and a few by hand."""

import importlib.util
import math
import sys
import types
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from fcifar import models, optim, privacy, random, tree
from fcifar.models import Model, from_module
from fcifar.models.from_module import operations
from fcifar.models.from_module.functionalize import Forward
from fcifar.models.from_module.init import spread
from fcifar.precision import BF16, FP64
from fcifar.step import TrainState, init_train_state, make_eval_step, make_train_step, normalize


def resnet(num_classes: int = 10) -> nn.Module:
    """torchvision's blocks, narrow and few, behind the stem for small images."""
    block = tv.resnet.BasicBlock
    shorten = nn.Sequential(tv.resnet.conv1x1(8, 16, 2), nn.BatchNorm2d(16))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)),
        block(8, 8),
        block(8, 16, 2, shorten),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)),
    )


def mobilenet(num_classes: int = 10) -> nn.Module:
    return tv.MobileNetV2(num_classes, 0.1, [[1, 16, 1, 1], [6, 24, 2, 2]], dropout=0.3)


def vit(num_classes: int = 10) -> nn.Module:
    rates = {"dropout": 0.1, "attention_dropout": 0.2}
    net = tv.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=num_classes, **rates)
    nn.init.normal_(net.heads.head.weight)  # which torchvision begins with zeros
    return net


def swin(num_classes: int = 10) -> nn.Module:
    rates = {"dropout": 0.1, "attention_dropout": 0.1, "stochastic_depth_prob": 0.3}
    return tv.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=num_classes, **rates)


def convnext(num_classes: int = 10) -> nn.Module:
    block = tv.convnext.CNBlockConfig
    return tv.ConvNeXt([block(8, 12, 1), block(12, None, 1)], 0.5, num_classes=num_classes)


class Own(nn.Module):
    """What people write: dropout by function, tables, a frozen part, a plain tensor, 1d norms."""

    def __init__(self, num_classes: int = 10, rate: float = 0.2) -> None:
        super().__init__()
        self.rate = rate
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 5, stride=4))
        self.register_buffer("table", torch.linspace(-1, 1, 49).reshape(7, 7))
        self.register_buffer("hidden", torch.arange(8.0), persistent=False)
        self.shift = torch.tensor([0.5])
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.wide, self.flat = nn.SyncBatchNorm(8), nn.BatchNorm1d(8, affine=False)
        self.head = nn.Linear(8, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(self.wide(self.conv(x)), self.rate, self.training) + self.table
        x = self.encoder(x.flatten(2).transpose(1, 2)).mean(1) + self.hidden * self.shift
        return self.head(F.dropout(self.flat(self.frozen(x)), self.rate, self.training))


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TIMM = {
    "timm-resnet": from_timm("resnet10t", drop_rate=0.1, drop_path_rate=0.1),
    "timm-efficientnet": from_timm("test_efficientnet", drop_rate=0.1, drop_path_rate=0.1),
    "timm-vit": from_timm("vit_tiny_patch16_224", **TINY, drop_path_rate=0.2, attn_drop_rate=0.1),
}
FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
    "own": Own,
    **TIMM,
}
NO_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install timm"
)


@pytest.fixture(
    params=[pytest.param(n, marks=NO_TIMM) if n in TIMM else n for n in FACTORIES], scope="module"
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Model:
    return from_module(FACTORIES[name])


def module_of(name: str, variables: models.Variables) -> nn.Module:
    """The module itself, with these values."""
    module = FACTORIES[name]()
    module.load_state_dict({**variables.params, **variables.buffers})
    return module


def images(size: int = 4) -> Tensor:
    return random.normal(random.key(5), (size, 3, 32, 32))


# The contracts of DESIGN section 3 ----------------------------------------------------------------


def test_names_are_those_of_the_state_dict_and_predictions_the_modules(
    name: str, model: Model
) -> None:
    variables = model.init(random.key(0))
    module = module_of(name, variables).eval()
    assert {*variables.params, *variables.buffers} == set(module.state_dict())
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert list(variables.params) == trained
    logits, same = model.apply(variables, images())
    with torch.no_grad():
        torch.testing.assert_close(logits, module(images()), rtol=1e-4, atol=1e-5)
    assert all(same[n] is b for n, b in variables.buffers.items())


def test_apply_is_pure_and_keyed(name: str, model: Model) -> None:
    variables = model.init(random.key(0))
    kept, x = tree.map(torch.clone, variables), images()
    before = torch.get_rng_state()
    once = model.apply(variables, x, key=random.key(1), train=True)
    assert tree.equal(once, model.apply(variables, x, key=random.key(1), train=True))
    assert tree.equal(variables, kept)
    assert torch.equal(x, images())
    assert torch.equal(torch.get_rng_state(), before)
    other = model.apply(variables, x, key=random.key(2), train=True)
    assert torch.equal(once[0], other[0]) == (name == "resnet"), "which alone draws nothing"
    changed = {n for n, b in once[1].items() if not torch.equal(b, variables.buffers[n])}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {n for n in variables.buffers if n.endswith(kinds)}
    assert models.mixes_examples(model) == bool(changed)


def test_init_is_keyed_and_leaves_the_generators_alone(model: Model) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = (model.init(random.key(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert tree.equal(a, b)
    same = [n for n, p in a.params.items() if torch.equal(p, c.params[n])]
    for n in same:
        assert len(a.params[n].unique()) == 1, n
    assert len(same) < len(a.params)
    assert tree.structure(model.init(random.key(0, device="meta"))) == tree.structure(a)


def test_steps_equal_those_of_the_module_and_torch_optim(name: str, make_batch) -> None:
    """In float64, batch norm's statistics included; without dropout, whose draws are others."""
    model, optimizer = from_module(lambda: still(FACTORIES[name]())), optim.sgd(0.01, 0.9)
    state = init_train_state(model, optimizer, key=random.key(0), policy=FP64)
    step = make_train_step(model, optimizer, policy=FP64)
    twin = still(module_of(name, state.variables)).double().train()
    for part in twin.modules():
        if isinstance(part, nn.SyncBatchNorm):
            part.__class__ = nn.BatchNorm2d
    theirs = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.01, momentum=0.9)
    for i in range(3):
        batch = make_batch(4, seed=i)
        state, metrics = step(state, batch)
        theirs.zero_grad()
        loss = F.cross_entropy(twin(normalize()(batch.images).double()), batch.labels)
        loss.backward()
        theirs.step()
        assert abs(metrics.loss / 4 - loss.detach()) < 1e-8
    values = {**state.variables.params, **state.variables.buffers}
    for n, value in twin.state_dict().items():
        torch.testing.assert_close(values[n], value, rtol=1e-6, atol=1e-8, msg=n)


def still(module: nn.Module) -> nn.Module:
    """The module without any rate of dropout."""
    rates = ("p", "rate", "dropout", "attention_dropout", "drop_prob", "drop_rate")
    for part in module.modules():
        for rate in rates:
            if isinstance(getattr(part, rate, None), float):
                setattr(part, rate, 0.0)
    return module


def test_it_maps_over_seeds_and_over_images(model: Model, make_batch) -> None:
    optimizer, batch = optim.sgd(0.01), make_batch(3)
    step = make_train_step(model, optimizer, policy=FP64)
    states = [init_train_state(model, optimizer, key=random.key(i), policy=FP64) for i in range(2)]
    together, _ = torch.vmap(step, in_dims=(0, None))(
        tree.map(lambda *xs: torch.stack(xs), *states), batch
    )
    for i, state in enumerate(states):
        alone, _ = step(state, batch)
        picked = tree.map(lambda x, i=i: x[i], together)
        for a, b in zip(tree.leaves(picked), tree.leaves(alone), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    variables = states[0].variables
    examples = make_eval_step(model, policy=FP64)(variables, batch)
    logits, _ = model.apply(variables, normalize()(batch.images).double())
    torch.testing.assert_close(examples.logits, logits, rtol=1e-8, atol=1e-10)


def test_jvp_goes_around_it(model: Model) -> None:
    variables = tree.map(
        lambda v: v.double() if v.is_floating_point() else v, model.init(random.key(0))
    )
    key, x = random.key(1), images(2).double()

    def loss(scale: Tensor) -> Tensor:
        params = {n: p * scale for n, p in variables.params.items()}
        logits, _ = model.apply(variables._replace(params=params), x, key=key, train=True)
        return (logits**2).sum()

    one = torch.ones((), dtype=torch.float64)
    _, forward = torch.func.jvp(loss, (one,), (one,))
    torch.testing.assert_close(forward, torch.func.grad(loss)(one), rtol=1e-8, atol=1e-10)


def test_it_computes_in_bfloat16(model: Model, make_batch) -> None:
    optimizer = optim.sgd(0.01)
    state = init_train_state(model, optimizer, key=random.key(0))
    after, metrics = make_train_step(model, optimizer, policy=BF16)(state, make_batch(4))
    assert metrics.loss.isfinite()
    for old, new in zip(tree.leaves(state), tree.leaves(after), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)


@pytest.mark.parametrize("name", ["convnext", "own"], indirect=True)
def test_it_compiles_to_one_graph_and_never_again(model: Model, make_batch) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    optimizer = optim.sgd(0.01, 0.9)
    step = make_train_step(model, optimizer)
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    state: TrainState = init_train_state(model, optimizer, key=random.key(0))
    other = state
    for i in range(3):
        state, m = compiled(state, make_batch(3, seed=i))
        other, n = step(other, make_batch(3, seed=i))
        for a, b in zip(tree.leaves((state, m)), tree.leaves((other, n)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(graphs) == 1


# Initialisation -----------------------------------------------------------------------------------


class Drawn(nn.Module):
    """A parameter from each initialiser of torch, and draws by hand; its forward is idle."""

    def __init__(self) -> None:
        super().__init__()
        init = nn.init
        for name, fill in {
            "uniform": lambda t: init.uniform_(t, -2, 1),
            "normal": lambda t: init.normal_(t, 1, 2),
            "trunc": lambda t: init.trunc_normal_(t, 0.5, 1, -1, 2),
            "trunc_tail": lambda t: init.trunc_normal_(t, 0, 1, 2, 4),
            "kaiming_uniform": lambda t: init.kaiming_uniform_(t, math.sqrt(5)),
            "kaiming_normal": lambda t: init.kaiming_normal_(t, mode="fan_out"),
            "xavier_uniform": init.xavier_uniform_,
            "xavier_normal": init.xavier_normal_,
            "bernoulli": lambda t: t.bernoulli_(0.3),
        }.items():
            with torch.no_grad():
                self.register_parameter(name, nn.Parameter(fill(torch.empty(200, 100))))
        self.orthogonal = nn.Parameter(init.orthogonal_(torch.empty(20, 10)))
        for name, values in {
            "rand": torch.rand(200, 100),
            "randn": torch.randn((200, 100)),
            "rand_like": torch.rand_like(self.normal),
            "randn_like": torch.randn_like(self.normal),
            "of_means": torch.normal(torch.full((200, 100), 3.0), 0.5),
            "of_probabilities": torch.bernoulli(torch.full((200, 100), 0.25)),
        }.items():
            self.register_buffer(name, values)
        self.linear = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)[:, :100])


def test_the_initial_distributions_are_torchs() -> None:
    """Moments and extremes of 20,000 numbers each, beside those of torch's own draws."""
    variables = from_module(Drawn).init(random.key(0))
    values = {**variables.params, **variables.buffers}
    torch.manual_seed(0)
    theirs = Drawn().state_dict()
    for name, own in values.items():
        other = theirs[name]
        if own.numel() < 20_000:
            continue
        error = 5 * float(other.std()) / math.sqrt(own.numel())
        assert abs(own.mean() - other.mean()) < 1.5 * error, name
        assert abs(own.std() / other.std() - 1) < 0.03, name
        assert abs(own.quantile(0.9) - other.quantile(0.9)) < 3 * error, name
        if name in ("uniform", "trunc", "kaiming_uniform", "xavier_uniform", "rand", "rand_like"):
            torch.testing.assert_close(own.min(), other.min(), rtol=0, atol=0.02 * float(own.std()))
            torch.testing.assert_close(own.max(), other.max(), rtol=0, atol=0.02 * float(own.std()))
    q = values["orthogonal"]
    torch.testing.assert_close(q.T @ q, torch.eye(10), rtol=0, atol=1e-5)
    drawn = [values[n].flatten()[:1000] for n in ("rand", "rand_like", "uniform")]
    assert torch.corrcoef(torch.stack(drawn)).tril(-1).abs().max() < 0.15, "each draws anew"


def test_draw_i_comes_from_fold_in_i() -> None:
    model = from_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    key, bound = random.key(7), 1 / math.sqrt(3072)
    params = model.init(key).params
    for i, (name, shape) in enumerate((("1.weight", (10, 3072)), ("1.bias", (10,)))):
        expected = random.uniform(random.fold_in(key, i), shape) * 2 * bound - bound
        torch.testing.assert_close(params[name], expected, rtol=0, atol=1e-7)


def test_what_stands_for_draws_is_spread_as_they_are() -> None:
    values = spread(0).uniform(3, (10_000,))
    assert values.min() >= 0
    assert values.max() < 1
    assert (values.histc(10, 0, 1) - 1000).abs().max() < 50
    normal = spread(1).normal(2, (10_000,))
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05


def test_constants_keep_their_values() -> None:
    """A table in the state_dict, one beside it, a plain tensor, and a frozen layer."""
    model = from_module(Own)
    variables = model.init(random.key(0))
    assert torch.equal(variables.buffers["table"], Own().table)
    assert "hidden" not in variables.buffers
    assert {"frozen.weight", "frozen.bias"} <= set(variables.buffers)
    module = module_of("own", variables).eval()
    module.hidden = torch.zeros(8)
    with torch.no_grad():
        assert not torch.allclose(module(images()), model.apply(variables, images())[0])


def test_a_buffer_may_be_float64() -> None:
    def make() -> nn.Module:
        return Net(
            lambda net: net.register_buffer("table", torch.arange(32, dtype=torch.float64)),
            lambda net, x: x * net.table,
        )

    variables = from_module(make).init(random.key(0))
    assert variables.buffers["table"].dtype == torch.float64


def test_a_module_that_is_there_already_keeps_its_values() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    model = from_module(lambda: net)
    params = model.init(random.key(0)).params
    assert torch.equal(params["1.weight"], net[1].weight)
    params["1.weight"].zero_()
    assert net[1].weight.any()
    assert not net[1].weight.is_meta


def test_one_layer_called_twice_sees_both_batches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(2 * self.norm(x) + 1).mean((2, 3)))

    model, x = from_module(Twice), images()
    variables = model.init(random.key(0))
    module = Twice()
    module.load_state_dict({**variables.params, **variables.buffers})
    logits, buffers = model.apply(variables, x, key=random.key(0), train=True)
    torch.testing.assert_close(logits, module(x))
    for name, value in buffers.items():
        torch.testing.assert_close(value, module.get_buffer(name))
    assert buffers["norm.num_batches_tracked"] == 2


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": 1}])
def test_attention_equals_torchs(options: dict[str, Any]) -> None:
    q, k, v = random.normal(random.key(0), (3, 2, 4, 6, 8)).double()
    masks: list[Any] = [None]
    if options.pop("attn_mask", 0):
        drawn = random.normal(random.key(1), (6, 6)).double()
        masks = [drawn, (drawn > 0) | torch.eye(6, dtype=torch.bool)]
    for mask in masks:
        found = operations.scaled_dot_product(_keep, q, k, v, mask, **options)
        expected = F.scaled_dot_product_attention(q, k, v, mask, **options)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def _keep(weights: Tensor, rate: float) -> Tensor:
    return weights


@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("mask", [None, "added", "hidden", "each"])
@pytest.mark.parametrize("average", [True, False])
def test_multi_head_attention_equals_torchs(width: int, mask: str | None, average: bool) -> None:
    """With keys of the query's width and of another, and the weights that it looks by."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, kdim=width, vdim=width, dtype=torch.float64)
    query = random.normal(random.key(0), (5, 3, 8)).double()
    rest = random.normal(random.key(1), (7, 3, width)).double()
    added = random.normal(random.key(2), (6, 5, 7)).double()
    masks = {"added": added[0], "hidden": added[0] > 0.5, "each": added, None: None}
    options = {"attn_mask": masks[mask], "average_attn_weights": average}
    expected = layer(query, rest, rest, **options)
    with Forward(None, {}, {}):
        found = layer(query, rest, rest, **options)
        alone, none = layer(query, rest, rest, need_weights=False, attn_mask=masks[mask])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(alone, expected[0], rtol=1e-10, atol=1e-12)
    assert none is None


def test_dropout_keeps_the_mean_and_drops_whole_channels() -> None:
    with Forward(random.key(0), {}, {}):
        ones = torch.ones(400, 50, 4, 4)
        values = F.dropout(ones, 0.2)
        channels = F.dropout2d(ones, 0.3)
        assert torch.equal(F.dropout(ones, 1.0), ones * 0)
        assert F.dropout(ones, 0.5, False) is ones
        changed = ones.clone()
        assert F.dropout(changed, 0.5, True, True) is changed
        attended = F.scaled_dot_product_attention(*(torch.ones(50, 40, 8),) * 3, dropout_p=0.25)
    assert abs(values.mean() - 1) < 0.005
    assert set(values.unique().tolist()) == {0.0, 1.25}
    assert abs(channels.mean() - 1) < 0.05
    assert torch.equal(channels, channels[:, :, :1, :1].expand_as(channels))
    assert not changed.all()
    assert abs(attended.mean() - 1) < 0.02
    assert attended.std() > 0.01


# What is refused ----------------------------------------------------------------------------------


class Net(nn.Module):
    """Linear, with what a test gives it."""

    def __init__(
        self,
        made: Callable[[Any], Any] = lambda net: None,
        called: Callable[[Any, Tensor], Any] = lambda net, x: x,
    ) -> None:
        super().__init__()
        self.fc, self.called = nn.Linear(3072, 10), called
        self.register_buffer("seen", torch.zeros(()))
        made(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.called(self, x).flatten(1))


def _of_bytes(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)


class WithLogits(nn.Module):
    """Gives its logits and others in a container."""

    def __init__(self, container: Callable[[Any], Any]) -> None:
        super().__init__()
        self.container, self.fc, self.aux = container, nn.Linear(3072, 10), nn.Linear(3072, 10)

    def forward(self, x: Tensor) -> Any:
        return self.container((self.fc(x.flatten(1)), self.aux(x.flatten(1))))


SCALE, CALLS = torch.tensor(2.0), []


def _layers(held: Callable[[list[nn.Module]], Any]) -> Callable[[Any], None]:
    return lambda net: setattr(net, "blocks", held([nn.Conv2d(3, 3, 1)]))


def _hides_a_scale(net: Any) -> None:
    scale = net.scale = nn.Parameter(torch.ones(()))
    net.scaled = lambda x: x * scale


def _scales_by_itself(net: Any) -> None:
    net.scale = nn.Parameter(torch.ones(()))
    net.scaled = lambda x: x * net.scale


def _remembers_one(net: Any, x: Tensor) -> Tensor:
    y = x if net.before is None else x + net.before
    net.before = x
    return y


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


def _single_only(x: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.float64:
        raise TypeError("float32 is computed in, and nothing else")
    return x


def _counts(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return x


def _remembers(net: Any, x: Tensor) -> Tensor:
    net.log.append(x)
    return x


def _replaces(net: Any, x: Tensor) -> Tensor:
    net.seen = net.seen + 1
    return x


def _forgets(net: Any) -> None:
    net.table = nn.Parameter(torch.empty(5))


def _by_numpy(net: Any) -> None:
    net.table = nn.Parameter(torch.tensor(np.random.default_rng().random(5)))


def _hidden_draw(net: Any) -> None:
    net.register_buffer("table", torch.rand(5), persistent=False)


def _own_generator(net: Any) -> None:
    net.table = nn.Parameter(torch.rand(5, generator=torch.Generator()))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "in place": (lambda: Net(called=lambda net, x: (net.seen.add_(1), x)[1]), "changes seen in"),
    "in place, by data": (
        lambda: Net(called=lambda net, x: (net.seen.data.add_(1), x)[1]),
        "changes seen in place",
    ),
    "a buffer": (lambda: Net(called=_replaces), "forward changes seen in training"),
    "a parameter": (
        lambda: Net(called=lambda net, x: (net.fc.weight.detach().mul_(2), x)[1]),
        "changes fc.weight in place",
    ),
    "its images": (lambda: Net(called=lambda net, x: F.relu_(x)), "changes the images in place"),
    "in place, by out": (
        lambda: Net(called=lambda net, x: (torch.add(net.seen, 1.0, out=net.seen), x)[1]),
        "in training: it changes seen in place; only the statistics of batch norm",
    ),
    "in place, in a list": (
        lambda: Net(called=lambda net, x: (torch._foreach_add_([net.seen], 1.0), x)[1]),
        "it changes seen in place",
    ),
    "in place, by a view": (
        lambda: Net(called=lambda net, x: (net.fc.weight.data[0].zero_(), x)[1]),
        "it changes fc.weight in place",
    ),
    "layers in a list": (
        lambda: Net(_layers(list), lambda net, x: net.blocks[0](x)),
        r"it uses blocks\[0\].weight, which is neither trained nor saved, because its layer is "
        r"held in a plain list; hold layers in nn.ModuleList or nn.ModuleDict",
    ),
    "layers in a dict": (
        lambda: Net(
            _layers(lambda layers: dict(enumerate(layers))), lambda net, x: net.blocks[0](x)
        ),
        r"it uses blocks\[0\].weight, .* held in a plain dict",
    ),
    "layers in an object": (
        lambda: Net(
            _layers(lambda layers: types.SimpleNamespace(first=layers[0])),
            lambda net, x: net.blocks.first(x),
        ),
        "it uses blocks.first.weight, .* held in a plain SimpleNamespace",
    ),
    "layers in a function": (
        lambda: Net(_layers(lambda layers: lambda x: layers[0](x)), lambda net, x: net.blocks(x)),
        r"it uses blocks's layers\[0\].weight, .* held in a plain list",
    ),
    "parameters in a list": (
        lambda: Net(lambda net: setattr(net, "scales", [nn.Parameter(torch.ones(()))])),
        r"scales\[0\] is a parameter in a plain list or dict, .* use nn.ParameterList",
    ),
    "a parameter in a function": (
        lambda: Net(_hides_a_scale, lambda net, x: net.scaled(x)),
        "it uses scaled's scale, a tensor held in a function, .* use self.NAME",
    ),
    "another's tensor": (
        lambda: Net(called=lambda net, x: x * SCALE),
        r"it uses a tensor \[\] that is neither the module's own nor made in the call",
    ),
    "a module made before": (
        (lambda net: lambda: net)(Net(_scales_by_itself, lambda net, x: net.scaled(x))),
        "it uses scaled's net.scale of a module that was made before; make the module in the fact",
    ),
    "a state": (
        lambda: Net(lambda net: setattr(net, "before", None), _remembers_one),
        "forward keeps before for its next call, which changes the result of that call",
    ),
    "numpy's draws": (
        lambda: Net(called=lambda net, x: x + np.random.default_rng().random()),
        "gives another result when it is called again with the same images and key",
    ),
    "a count elsewhere": (
        lambda: Net(called=lambda net, x: (CALLS.append(1), x * len(CALLS))[1]),
        "gives another result when it is called again",
    ),
    "other images": (
        lambda: Net(called=lambda net, x: x - x.mean(0, keepdim=True)),
        "in evaluation the module gives another result for an image beside others than alone",
    ),
    "other images, in float32 alone": (
        lambda: Net(called=lambda net, x: _single_only(x) - x.mean(0, keepdim=True)),
        "in evaluation the module gives another result for an image beside others than alone",
    ),
    "old weight norm": (
        lambda: Net(lambda net: nn.utils.weight_norm(net.fc)),
        "fc has torch.nn.utils.weight_norm, .* use torch.nn.utils.parametrizations.weight_norm",
    ),
    "old spectral norm": (
        lambda: Net(lambda net: nn.utils.spectral_norm(net.fc)),
        "fc has torch.nn.utils.spectral_norm, .* use torch.nn.utils.parametrizations.spectral_norm",
    ),
    "pruned": (
        lambda: Net(lambda net: prune.l1_unstructured(net.fc, "weight", 0.5)),
        "fc is pruned by torch.nn.utils.prune, .* end with prune.remove",
    ),
    "scripted": (
        lambda: nn.Sequential(torch.jit.script(nn.Flatten()), nn.Linear(3072, 10)),
        "0 is made by torch.jit, .* give the nn.Module",
    ),
    "checkpoint": (
        lambda: Net(called=lambda net, x: checkpoint(torch.sin, x, use_reentrant=False)),
        "it recomputes by torch.utils.checkpoint, .* leave checkpointing out",
    ),
    "checkpoint, reentrant": (
        lambda: tv.DenseNet(4, (1, 1), 8, memory_efficient=True, num_classes=10),
        "it recomputes by torch.utils.checkpoint",
    ),
    "autograd, old": (
        lambda: Net(called=lambda net, x: Doubled.apply(net.fc.bias.sum() * x)),
        "it has a torch.autograd.Function whose forward takes ctx; write it with setup_context",
    ),
    "autograd": (
        lambda: Net(called=lambda net, x: Tripled.apply(net.fc.bias.sum() * x)),
        "it has a torch.autograd.Function without a rule for vmap; give it generate_vmap_rule",
    ),
    "an exit": (lambda: Net(called=lambda net, x: sys.exit(3)), "it exits with 3"),
    "a key": (
        lambda: Net(called=lambda net, x: {}["width"]),
        r"KeyError: 'width' \(.*test_from_module.py, line \d+\)$",
    ),
    "a count": (lambda: Net(called=_counts), "forward changes calls in training, which a pure "),
    "a list": (
        lambda: Net(lambda net: setattr(net, "log", []), _remembers),
        "forward changes log in training",
    ),
    "a value": (
        lambda: Net(called=lambda net, x: x if x.sum() > 0 else -x),
        "do not go through the module in training: .*reads a tensor's values",
    ),
    "rrelu": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.RReLU()), "global gene"),
    "alpha": (lambda: Net(called=lambda net, x: F.alpha_dropout(x, 0.1, net.training)), "by "),
    "multinomial": (
        lambda: Net(called=lambda net, x: x[torch.multinomial(x.new_ones(2), 2)]),
        "draws from torch's global generator by multinomial",
    ),
    "a generator": (
        lambda: Net(called=lambda net, x: x + torch.rand(1, generator=torch.Generator())),
        "draws from a separate generator",
    ),
    "dropout always": (
        lambda: Net(called=lambda net, x: F.dropout(x, 0.1)),
        "in evaluation: it draws at random outside training; give .* training=self.training",
    ),
    "no statistics": (
        lambda: Net(lambda net: setattr(net, "n", nn.BatchNorm2d(3, track_running_stats=False))),
        "n is a batch norm without running statistics",
    ),
    "cumulative": (
        lambda: Net(lambda net: setattr(net, "n", nn.BatchNorm2d(3, momentum=None))),
        "n is a batch norm with momentum=None, a cumulative average",
    ),
    "instances": (
        lambda: Net(
            lambda net: setattr(net, "n", nn.InstanceNorm2d(3, track_running_stats=True)),
            lambda net, x: net.n(x),
        ),
        "changes n.running_mean in place",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
        "1.weight has no shape yet; give the layer its number of inputs",
    ),
    "not initialised": (lambda: Net(_forgets), "table is never given a value"),
    "by numpy": (lambda: Net(_by_numpy), "table is not the same when the module is made twice"),
    "hidden draw": (lambda: Net(_hidden_draw), "table is drawn at random and not in the state_d"),
    "own generator": (lambda: Net(_own_generator), "cannot be made: it draws from a separate gen"),
    "unknown draw": (
        lambda: Net(lambda net: net.seen.exponential_()),
        "cannot be made: it draws by exponential_, which has no keyed form here",
    ),
    "seeding": (
        lambda: Net(lambda net: torch.manual_seed(0)),
        "changes torch's global generator; leave out torch.manual_seed",
    ),
    "an error": (lambda: Net(lambda net: 1 / 0), "the module cannot be made: division by zero"),
    "another thing": (lambda: 3, "the factory gives a int; it must give an nn.Module"),
    "a tuple": (
        lambda: WithLogits(tuple),
        "the module gives a tuple in training; it must give logits",
    ),
    "classes": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 7)),
        r"the module gives \[2, 7\] for two images; it must give logits \[2, 10\]",
    ),
    "image size": (
        lambda: tv.VisionTransformer(224, 16, 1, 1, 8, 8),
        "images of 32x32 pixels do not go through the module in training: Wrong image height",
    ),
    "size": (lambda: nn.Linear(30_000, 30_000), "at most 200,000,000 parameters are accepted"),
    "many layers": (
        lambda: nn.ParameterList(_of_bytes(5000, 5000) for _ in range(9)),
        "the model would have 225,000,000 parameters; at most 200,000,000 are accepted",
    ),
}


def test_the_logits_of_several_results_are_taken_by_their_name() -> None:
    results = namedtuple("Results", ["logits", "aux"])
    model = from_module(lambda: WithLogits(lambda both: results(*both)))
    variables = model.init(random.key(0))
    logits, _ = model.apply(variables, images())
    expected = F.linear(
        images().flatten(1), *(variables.params[f"fc.{n}"] for n in ("weight", "bias"))
    )
    torch.testing.assert_close(logits, expected)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_pure_is_refused(case: str) -> None:
    factory, message = REFUSED[case]
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as refused:
        from_module(factory)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600
    assert torch.equal(torch.get_rng_state(), before)


def test_private_training_refuses_batch_norm_and_takes_the_rest(make_batch) -> None:
    plain = from_module(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(3072, 10)))
    optimizer, batch = optim.sgd(0.1), make_batch(4)
    state = init_train_state(plain, optimizer, key=random.key(0))
    step = make_train_step(plain, optimizer, gradient=privacy.dp_gradient(1.0, 0.1))
    after, _ = step(state, batch)
    assert not tree.equal(after.variables, state.variables)
    assert not models.mixes_examples(plain)
    assert models.mixes_examples(from_module(resnet))


def test_training_needs_a_key() -> None:
    model = from_module(resnet)
    with pytest.raises(ValueError, match="give apply a key"):
        model.apply(model.init(random.key(0)), images(), train=True)
