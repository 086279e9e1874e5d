"""Frozen parameters: the same bits after training, and steps equal to PyTorch's without them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import averaging, models, optim, random
from fcifar.models import Variables
from fcifar.precision import BF16, FP32, FP64, Policy
from fcifar.step import Batch, TrainState, init_train_state, make_train_step, normalize
from tests.helpers.small import make_model

PATTERNS = {
    "lenet": ["conv*"],
    "conv3": ["conv1.*", "*.bias"],
    "speednet": ["whiten.*", "groups.0.*"],
    "resnet18": ["conv1.*", "bn1.*", "layer[123].*"],
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def batch(seed: int) -> Batch:
    images = random.randint(random.key(seed), (6, 3, 32, 32), 0, 256).to(torch.uint8)
    return Batch(images, random.randint(random.key(seed + 100), (6,), 0, 10).long())


def after(model: models.Model, steps: int, policy: Policy = FP32) -> tuple[TrainState, ...]:
    """The states before and after some steps, with all that could move a parameter."""
    average = averaging.ema(0.9)
    decay = optim.add_decayed_weights(0.1)
    optimizer = optim.chain(decay, optim.sgd(0.1, momentum=0.9, nesterov=True))
    step = make_train_step(model, optimizer, policy=policy, average=average)
    first = state = init_train_state(
        model, optimizer, key=random.key(0), policy=policy, average=average
    )
    for seed in range(steps):
        state, _ = step(state, batch(seed))
    return first, state


@pytest.mark.parametrize("policy", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", PATTERNS)
def test_what_matches_keeps_its_bits(name: str, policy: Policy) -> None:
    model = make_model(name)
    whole = model.init(random.key(0))
    first, last = after(models.freeze(model, PATTERNS[name]), 3, policy)
    before, now = ({**s.variables.params, **s.variables.buffers} for s in (first, last))
    assert now.keys() == {*whole.params, *whole.buffers}
    trained = models.freeze(model, PATTERNS[name]).init(random.key(0)).params
    assert 0 < len(trained) < len(whole.params)
    moved = {n for n in now if not torch.equal(now[n], before[n])}
    assert moved >= trained.keys()
    assert not moved & (whole.params.keys() - trained.keys())
    averaged = {**last.average.average.params, **last.average.average.buffers}
    assert all(torch.equal(averaged[n], before[n]) for n in now if n not in moved)


def test_running_statistics_move_only_where_no_pattern_matches() -> None:
    first, last = after(models.freeze(make_model("resnet18"), PATTERNS["resnet18"]), 2)
    before, now = first.variables.buffers, last.variables.buffers
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert moved == {n for n in now if n.startswith("layer4.") and ".running_" in n}


def test_steps_equal_those_of_pytorch_with_frozen_layers() -> None:
    """``requires_grad_(False)`` and ``bn1.eval()``, in float64."""
    torch.manual_seed(0)  # of the module below alone
    twin = Net().double()
    with torch.no_grad():
        twin.bn1.running_mean.uniform_(-1, 1)
        twin.bn1.running_var.uniform_(0.5, 2)
    values = {name: v for name, v in twin.state_dict().items() if v.is_floating_point()}
    model = models.freeze(models.from_module(Net), ["conv1.*", "bn1.*"])
    optimizer = optim.sgd(0.1, momentum=0.9)
    state = init_train_state(
        model,
        optimizer,
        key=random.key(0),
        policy=FP64,
        pretrained={name: copy.deepcopy(v) for name, v in values.items()},
    )
    step = make_train_step(model, optimizer, policy=FP64)
    for part in (twin.conv1, twin.bn1):
        part.requires_grad_(False)
    twin.train()
    twin.bn1.eval()
    trained = [p for p in twin.parameters() if p.requires_grad]
    loop = torch.optim.SGD(trained, 0.1, momentum=0.9)
    for seed in range(3):
        images, labels = batch(seed)
        state, _ = step(state, Batch(images, labels))
        loop.zero_grad()
        F.cross_entropy(twin(normalize()(images).double()), labels).backward()
        loop.step()
    ours = {**state.variables.params, **state.variables.buffers}
    for name, value in twin.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-9), name
    assert ours["bn1.num_batches_tracked"] == 0
    assert ours["bn2.num_batches_tracked"] == 3


def test_it_maps_over_seeds_and_adapts() -> None:
    model = models.freeze(make_model("speednet"), ["groups.0.*"])
    keys = random.split(random.key(0), 3)
    variables = torch.func.vmap(model.init)(keys)
    images = torch.zeros(2, 3, 32, 32)
    logits, _ = torch.func.vmap(lambda v: model.apply(v, images))(variables)
    assert logits.shape == (3, 2, 10)
    one = model.init(random.key(0))
    sample = random.normal(random.key(1), (64, 3, 32, 32))
    adapted, whole = model.adapt(one, sample), make_model("speednet")
    expected = whole.adapt(whole.init(random.key(0)), sample)
    assert torch.equal(adapted.buffers["whiten.weight"], expected.buffers["whiten.weight"])


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["conv9*"], "freeze has 'conv9*', which matches no parameter; they are conv1.weight"),
        (["*"], "freeze is '*', which leaves no parameter to train; the parameters are conv1"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        models.freeze(make_model("lenet"), patterns)


def test_without_patterns_nothing_changes() -> None:
    model = make_model("resnet18")
    same = models.freeze(model, [])
    a, b = model.init(random.key(0)), same.init(random.key(0))
    assert isinstance(b, Variables)
    assert [*a.params, *a.buffers] == [*b.params, *b.buffers]
