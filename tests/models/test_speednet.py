"""speednet: against a module written out, its whitening against its definition, and bfloat16."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers, models, optim, precision, random, tree
from fcifar.models import Model, Params, Variables
from fcifar.models.speednet import EPSILON, whitening, with_identity
from fcifar.precision import BF16, FP32, FP64
from fcifar.step import init_train_state, make_train_step, normalize
from fcifar.step_transforms import compile_pure

SMALL: dict[str, Any] = {"widths": (8, 12, 16)}
FORMS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "deep": {**SMALL, "depth": 3, "act": "silu", "momentum": 0.1},
    "unwhitened": {**SMALL, "whiten": False, "dirac": False, "head_std": 0.5, "logit_scale": 2.0},
    "one group": {"widths": (30,), "num_classes": 3},
}


class _Group(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, momentum: float, act: Any) -> None:
        super().__init__()
        self.act = act
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(depth):
            channels = inputs if i == 0 else outputs
            self.convs.append(nn.Conv2d(channels, outputs, 3, padding="same", bias=False))
            norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=momentum)
            norm.weight = None  # type: ignore[assignment]
            norm.register_parameter("weight", None)
            self.norms.append(norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        if len(self.convs) == 2:
            return self.act(self.norms[1](self.convs[1](x)))
        y = self.act(self.norms[1](self.convs[1](x)))
        return self.act(self.norms[2](self.convs[2](y)) + x)


class Plain(nn.Module):
    """speednet as one would write it."""

    def __init__(
        self,
        widths: tuple[int, ...] = (64, 256, 256),
        depth: int = 2,
        num_classes: int = 10,
        act: str = "gelu",
        whiten: bool = True,
        dirac: bool = True,
        momentum: float = 0.4,
        logit_scale: float = 1 / 9,
        head_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.act, self.logit_scale = {"gelu": nn.GELU(), "silu": nn.SiLU()}[act], logit_scale
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(not whiten)
        self.groups = nn.ModuleList(
            _Group(a, b, depth, momentum, self.act)
            for a, b in zip((24, *widths[:-1]), widths, strict=True)
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.whiten(x))
        for group in self.groups:
            x = group(x)
        return self.head(x.amax((2, 3))) * self.logit_scale


def twin_of(variables: Variables, options: dict[str, Any]) -> Plain:
    twin = Plain(**options).double()
    missing, unexpected = twin.load_state_dict(variables.params | variables.buffers, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return twin


def double(variables: Variables) -> Variables:
    return tree.map(lambda value: value.double(), variables)


def some_images(size: int = 4, side: int = 32, seed: int = 1) -> Tensor:
    """Normalised, with the structure of photographs: neighbours are alike."""
    coarse = random.normal(random.key(seed), (size, 3, side // 4, side // 4))
    fine = random.normal(random.key(seed + 1000), (size, 3, side, side))
    return F.interpolate(coarse, size=side, mode="bilinear") + 0.1 * fine


@pytest.mark.parametrize("form", FORMS)
def test_it_equals_a_module_written_out(form: str) -> None:
    """In float64, training and evaluation: logits, gradients, statistics after two batches."""
    options = FORMS[form]
    model = models.speednet(**options)
    variables = double(model.init(random.key(0)))
    twin = twin_of(variables, options)
    for seed in (1, 2):
        images = some_images(seed=seed).double()

        def objective(params: Params, images: Tensor = images, buffers=variables.buffers) -> Any:
            within = Variables(params, buffers)
            logits, buffers = model.apply(within, images, key=random.key(2), train=True)
            return (logits**2).sum(), (logits, buffers)

        grads, (logits, buffers) = torch.func.grad(objective, has_aux=True)(variables.params)
        twin.train().zero_grad()
        expected = twin(images)
        (expected**2).sum().backward()
        torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-11)
        assert set(grads) == {n for n, p in twin.named_parameters() if p.requires_grad}
        for name, grad in grads.items():
            torch.testing.assert_close(grad, twin.get_parameter(name).grad, rtol=1e-7, atol=1e-10)
        for name, value in buffers.items():
            torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-11, atol=1e-12)
        variables = variables._replace(buffers=buffers)
    logits, same = model.apply(variables, images)
    assert tree.equal(same, variables.buffers)
    with torch.no_grad():
        torch.testing.assert_close(logits, twin.eval()(images), rtol=1e-10, atol=1e-12)


def test_steps_equal_those_of_a_module_and_torch_optim(make_batch) -> None:
    """The functional step in float64 against loss.backward() and SGD."""
    model, optimizer = models.speednet(**SMALL), optim.sgd(0.05, 0.85, nesterov=True)
    sample = normalize()(make_batch(50, seed=9).images)
    state = init_train_state(model, optimizer, key=random.key(0), policy=FP64, sample=sample)
    step = make_train_step(model, optimizer, policy=FP64)
    twin = twin_of(state.variables, SMALL).train()
    trained = [p for p in twin.parameters() if p.requires_grad]
    theirs = torch.optim.SGD(trained, 0.05, momentum=0.85, nesterov=True)
    for i in range(10):
        batch = make_batch(8, seed=i)
        state, metrics = step(state, batch)
        theirs.zero_grad()
        logits = twin(((batch.images.float() / 255 - 0.5) / 0.5).double())
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        theirs.step()
        assert abs(metrics.loss / 8 - loss.detach()) < 1e-8
    for name, value in (state.variables.params | state.variables.buffers).items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-6, atol=1e-8)


def test_it_has_the_parameters_of_the_record() -> None:
    variables = models.speednet().init(random.key(0))
    assert sum(p.numel() for p in variables.params.values()) == 1_971_352
    assert list(variables.params) == [
        "whiten.bias",
        *(f"groups.{i}.{kind}" for i in range(3) for kind in (
            "convs.0.weight", "convs.1.weight", "norms.0.bias", "norms.1.bias"
        )),
        "head.weight",
    ]  # fmt: skip
    assert "whiten.weight" in variables.buffers
    plain = models.speednet(whiten=False).init(random.key(0))
    assert sum(p.numel() for p in plain.params.values()) == 1_971_352 + 24 * 12
    assert "whiten.weight" not in plain.buffers


# How it begins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_an_identity_in_a_kernel_lets_the_first_channels_through(shape: tuple[int, int]) -> None:
    drawn = random.normal(random.key(0), (*shape, 3, 3)).double()
    kernel, kept = with_identity(drawn), drawn.clone()
    x = random.normal(random.key(1), (2, shape[1], 7, 9)).double()
    y = F.conv2d(x, kernel, padding=1)
    least = min(shape)
    assert torch.equal(y[:, :least], x[:, :least])
    assert torch.equal(kernel[least:], drawn[least:])
    assert torch.equal(drawn, kept)
    dirac = nn.init.dirac_(drawn[:least].clone())
    assert torch.equal(kernel[:least], dirac)


def test_dirac_and_the_head_are_what_the_arguments_say() -> None:
    key = random.key(0)
    plain = models.speednet(**SMALL, dirac=False).init(key).params
    dirac = models.speednet(**SMALL).init(key).params
    for name, value in plain.items():
        expected = with_identity(value) if "convs" in name else value
        assert torch.equal(dirac[name], expected), name
    wide = models.speednet(**SMALL, head_std=2.0).init(key).params["head.weight"]
    torch.testing.assert_close(wide.std(correction=0), torch.tensor(2.0))
    torch.testing.assert_close(
        wide / wide.norm(), plain["head.weight"] / plain["head.weight"].norm()
    )


def second_moments(images: Tensor, kernel: Tensor) -> Tensor:
    """Of the outputs of a kernel over all patches."""
    outputs = F.conv2d(images.double(), kernel).movedim(1, 0).flatten(1)
    return outputs @ outputs.T / outputs.shape[1]


@pytest.mark.parametrize("side", [16, 32])
def test_whitening_is_its_definition(side: int) -> None:
    images = some_images(50, side) * torch.tensor([1.0, 0.5, 2.0])[:, None, None] + 0.3
    kernel = whitening(images)
    assert kernel.shape == (24, 3, 2, 2)
    assert kernel.dtype == torch.float64
    half = kernel[:12]
    assert torch.equal(kernel[12:], -half)

    patches = F.unfold(images.double(), 2).movedim(1, 0).flatten(1)
    values = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    assert values[0] > 100 * values[-1]
    moments = second_moments(images, half)
    expected = torch.diag(values / (values + EPSILON))
    torch.testing.assert_close(moments, expected, rtol=0, atol=1e-9)
    assert (moments.diagonal() > 0.8).all(), "about one, where nearly all is above the epsilon"

    rows = half.flatten(1)
    torch.testing.assert_close(rows.norm(dim=1), torch.rsqrt(values + EPSILON), rtol=1e-9, atol=0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_whitening_of_images_that_are_all_alike_is_finite() -> None:
    kernel = whitening(torch.ones(3, 3, 16, 16))
    assert kernel.isfinite().all()
    flat = second_moments(torch.ones(1, 3, 16, 16), kernel[:12]).diagonal()
    torch.testing.assert_close(flat[0], torch.tensor(12 / (12 + EPSILON), dtype=torch.float64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 0.0])
def test_whitening_of_what_is_hardly_an_image_is_finite(value: float) -> None:
    images = some_images(3, 16)
    images[1, 2, 3, 4] = value
    assert whitening(images).isfinite().all()
    assert whitening(torch.full_like(images, value)).isfinite().all()


def test_adapting_changes_the_whitening_alone_and_training_leaves_it(make_batch) -> None:
    model, optimizer = models.speednet(**SMALL), optim.sgd(0.1, 0.9)
    variables, sample = model.init(random.key(0)), some_images(20)
    before = tree.map(torch.clone, variables)
    adapted = model.adapt(variables, sample)
    assert tree.equal(variables, before)
    assert adapted.params is variables.params
    changed = [n for n, b in adapted.buffers.items() if not torch.equal(b, variables.buffers[n])]
    assert changed == ["whiten.weight"]
    assert torch.equal(adapted.buffers["whiten.weight"], whitening(sample).float())
    assert adapted.buffers["whiten.weight"].dtype == torch.float32

    state = init_train_state(model, optimizer, key=random.key(0), sample=sample)
    after, _ = make_train_step(model, optimizer)(state, make_batch())
    a, b = (s.variables.buffers["whiten.weight"] for s in (state, after))
    assert torch.equal(a, whitening(sample).float())
    assert torch.equal(a, b)
    assert "whiten.weight" not in after.variables.params
    assert not torch.equal(*(s.variables.params["whiten.bias"] for s in (state, after)))


def test_without_whitening_there_is_nothing_to_adapt() -> None:
    model = models.speednet(**SMALL, whiten=False)
    assert model.adapt is models.base.keep
    assert models.resnet18(width=4).adapt is models.base.keep


# What goes through --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 17, 20, 24, 28, 31, 32, 33, 40])
def test_images_of_any_size_from_16_go_through(side: int) -> None:
    model = models.speednet(**SMALL)
    variables, images = model.init(random.key(0)), torch.ones(2, 3, side, side)
    for train in (False, True):
        logits, _ = model.apply(variables, images, key=random.key(0), train=train)
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, r"widths is \(\); it must be a list of one to three widths"),
        ({"widths": (1, 2, 3, 4)}, "list of one to three widths"),
        ({"widths": 64}, "widths is 64; it must be a list of one to three"),
        ({"widths": "64"}, "widths is '64'; it must be a list of one to three"),
        ({"widths": (64, 0)}, "widths is 0; it must be a whole number from 1 up"),
        ({"widths": (64, 4.0)}, "widths is 4.0; it must be a whole number"),
        ({"widths": (True,)}, "widths is True; it must be a whole number"),
        ({"widths": ((64,), 64)}, r"widths is \(64,\); it must be a whole number"),
        ({"widths": (4000,) * 3}, "would have .* parameters; at most 200,000,000 are accepted"),
        ({"widths": (10**9,) * 3}, "would have .* parameters; at most 200,000,000 are accepted"),
        ({"depth": 1}, "depth is 1; it must be 2 or 3"),
        ({"depth": 2.0}, "depth is 2.0; it must be 2 or 3"),
        ({"depth": True}, "depth is True; it must be 2 or 3"),
        ({"depth": "3"}, "depth is '3'; it must be 2 or 3"),
        ({"num_classes": 0}, "num_classes is 0; it must be a whole number"),
        ({"act": "relu"}, "act is 'relu'; it must be gelu or silu"),
        ({"act": {}}, "act is {}; it must be gelu or silu"),
        ({"whiten": 1}, "whiten is 1; it must be true or false"),
        ({"dirac": "no"}, "dirac is 'no'; it must be true or false"),
        ({"momentum": 1.5}, r"momentum is 1.5; it must lie in \[0, 1\]"),
        ({"momentum": True}, r"momentum is True; it must lie in \[0, 1\]"),
        ({"logit_scale": -1}, r"logit_scale is -1; it must lie in \[0, 1e\+06\]"),
        ({"logit_scale": float("nan")}, "logit_scale is nan; it must lie in"),
        ({"head_std": 10**400}, "head_std is 10+.*; it must lie in"),
        ({"head_std": "1"}, "head_std is '1'; it must lie in"),
    ],
)
def test_misuse_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        models.speednet(**options)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 250


# bfloat16 -----------------------------------------------------------------------------------------


def logits_and_grads(
    model: Model, policy: precision.Policy, variables: Variables, images: Tensor
) -> tuple[Tensor, Params]:
    """Of the sum of the cross-entropies, with labels that the images have nothing to do with."""
    labels = torch.arange(len(images)) % 10

    def objective(params: Params) -> tuple[Tensor, Tensor]:
        cast = precision.cast(params, policy.compute)
        within = Variables(cast, variables.buffers)
        logits, _ = model.apply(within, images.to(policy.compute), key=random.key(0), train=True)
        logits = logits.to(policy.output)
        return F.cross_entropy(logits, labels, reduction="sum"), logits

    grads, logits = torch.func.grad(objective, has_aux=True)(variables.params)
    return logits, grads


def distance(a: Any, b: Any) -> float:
    """Of two trees, in parts of the second's norm."""
    return float(tree.norm(tree.map(torch.sub, a, b)) / tree.norm(b))


def assert_near(found: Any, expected: Any, logits: float, grads: float) -> None:
    assert all(x.isfinite().all() for x in tree.leaves(found))
    assert distance(found[0], expected[0]) < logits
    assert distance(found[1], expected[1]) < grads


def by_autocast(options: dict[str, Any], variables: Variables, images: Tensor, on: bool) -> Any:
    """``logits_and_grads`` of the module written out, with PyTorch's own mixed precision or not."""
    twin = Plain(**options).train()
    twin.load_state_dict(variables.params | variables.buffers, strict=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        logits = twin(layers.channels_last(images)).float()
    F.cross_entropy(logits, torch.arange(len(images)) % 10, reduction="sum").backward()
    return logits.detach(), {name: twin.get_parameter(name).grad for name in variables.params}


@pytest.mark.parametrize("depth", [2, 3])
def test_bfloat16_is_as_near_to_float32_as_with_autocast(depth: int) -> None:
    """Logits within 3 in 100, gradients within 1 in 4: other pixels become the largest of four."""
    options = {"widths": (32, 64, 64), "depth": depth}
    model = models.speednet(**options)
    variables = model.adapt(model.init(random.key(0)), some_images(100))
    images = some_images(64)
    exact = logits_and_grads(model, FP32, variables, images)
    rough = logits_and_grads(model, BF16, variables, images)
    assert_near(rough, exact, logits=0.03, grads=0.25)
    assert all(g.dtype == torch.float32 for g in rough[1].values())
    for i in (0, 1):
        theirs = (by_autocast(options, variables, images, on)[i] for on in (True, False))
        assert distance(rough[i], exact[i]) < 1.3 * distance(*theirs)


@pytest.mark.slow
def test_compiled_bfloat16_has_the_gradients_of_eager() -> None:
    """They are finite above all, though no network here is known to fail it with ``amax``.

    A compiler may compute anew in float32 what it saved in bfloat16. A maximum whose derivative
    compares it with what went into it, such as ``amax``, is then found nowhere: 0 / 0.
    """
    model = models.speednet(widths=(16, 32, 32))
    variables = model.adapt(model.init(random.key(0)), some_images(100))
    images = some_images(64)

    def both(variables: Variables, images: Tensor) -> tuple[Tensor, Params]:
        return logits_and_grads(model, BF16, variables, images)

    eager = both(variables, images)
    compiled = compile_pure(both)(variables, images)
    assert_near(compiled, eager, logits=0.03, grads=0.25)
    assert_near(compiled, logits_and_grads(model, FP32, variables, images), logits=0.03, grads=0.25)


def test_a_layer_names_its_buffers() -> None:
    x = torch.zeros(())
    assert layers.named("a.b", {"running_mean": x}) == {"a.b.running_mean": x}
