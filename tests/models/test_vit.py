"""The vision transformer and the Mixer against torch's own layers, and their initialisation."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import models, random, tree
from fcifar.models import Params, Variables


def doubled(model: models.Model) -> Variables:
    """Variables in float64, with each vector and the head moved from where they start."""
    variables = model.init(random.key(0))
    keys = random.split(random.key(1), len(variables.params))
    params = {
        name: (value + 0.1 * random.normal(k, value.shape)).double()
        for (name, value), k in zip(variables.params.items(), keys, strict=True)
    }
    return Variables(params, {})


def transformer(params: Params, images: Tensor, heads: int, depth: int) -> Tensor:
    """With ``nn.TransformerEncoderLayer``, which has the same blocks under other names."""
    width = params["cls_token"].shape[-1]
    proj = params["patch_embed.proj.weight"]
    patches = F.unfold(images, proj.shape[-1], stride=proj.shape[-1]).transpose(1, 2)
    x = patches @ proj.flatten(1).T + params["patch_embed.proj.bias"]
    x = torch.cat([params["cls_token"].repeat(len(x), 1, 1), x], 1) + params["pos_embed"]
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    for i in range(depth):
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", 1e-6, True, norm_first=True, dtype=torch.float64
        )
        own = {
            theirs + kind: params[f"blocks.{i}.{ours}{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
        x = torch.func.functional_call(layer, own, (x,))
    x = F.layer_norm(x, (width,), params["norm.weight"], params["norm.bias"], 1e-6)
    return F.linear(x[:, 0], params["head.weight"], params["head.bias"])


def mixer(params: Params, images: Tensor, depth: int) -> Tensor:
    """The paper's equation (1), with a column for each token."""
    proj = params["stem.proj.weight"]
    patches = F.unfold(images, proj.shape[-1], stride=proj.shape[-1]).transpose(1, 2)
    x = patches @ proj.flatten(1).T + params["stem.proj.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        wide = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-6
        ).sqrt()
        return wide * params[f"{name}.weight"] + params[f"{name}.bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        w1, b1, w2, b2 = (params[f"{name}.fc{i}.{k}"] for i in (1, 2) for k in ("weight", "bias"))
        hidden = x @ w1.T + b1
        return hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))) @ w2.T + b2

    for i in range(depth):
        tokens = norm(x, f"blocks.{i}.norm1").mT
        x = x + mlp(tokens, f"blocks.{i}.mlp_tokens").mT
        x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp_channels")
    return norm(x, "norm").mean(1) @ params["head.weight"].T + params["head.bias"]


@pytest.mark.parametrize("name", ["vit_tiny", "mlp_mixer"])
def test_it_equals_torchs_layers_in_float64(name: str) -> None:
    """Logits and the gradient of every parameter."""
    if name == "vit_tiny":
        model = models.vit_tiny(patch=8, width=12, depth=2, heads=3)
    else:
        model = models.mlp_mixer(patch=8, width=12, depth=2, token_hidden=6, channel_hidden=20)
    params, images = doubled(model).params, random.normal(random.key(2), (3, 3, 32, 32)).double()

    def reference(params: Params) -> Tensor:
        if name == "vit_tiny":
            return transformer(params, images, heads=3, depth=2)
        return mixer(params, images, depth=2)

    def ours(params: Params) -> Tensor:
        return model.apply(Variables(params, {}), images, key=random.key(3), train=True)[0]

    torch.testing.assert_close(ours(params), reference(params), rtol=1e-9, atol=1e-11)
    found, expected = (
        torch.func.grad(lambda p, f=f: (f(p) ** 2).sum())(params) for f in (ours, reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert all(g.any() for g in found.values())


def test_parameter_counts() -> None:
    def count(model: models.Model) -> int:
        return sum(p.numel() for p in model.init(random.key(0, device="meta")).params.values())

    assert count(models.vit_tiny()) == 5_362_762
    for options in (
        {"patch": 4, "width": 128, "depth": 8, "token_hidden": 64, "channel_hidden": 512},
        {"patch": 8, "width": 48, "depth": 3, "token_hidden": 20, "channel_hidden": 30},
    ):
        p, c, n, ds, dc = options.values()
        tokens = (32 // p) ** 2
        block = 4 * c + 2 * tokens * ds + ds + tokens + 2 * c * dc + dc + c
        expected = 3 * p * p * c + c + n * block + 2 * c + 10 * c + 10
        assert count(models.mlp_mixer(**options)) == expected
    assert count(models.mlp_mixer()) == 1_132_170


def test_the_transformer_starts_as_the_authors() -> None:
    params = models.vit_tiny(depth=1).init(random.key(0)).params
    for name, value in params.items():
        if name.startswith("patch_embed"):
            assert 0.95 / math.sqrt(48) < value.abs().max() <= 1 / math.sqrt(48), name
        elif "norm" in name and name.endswith("weight"):
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith("bias") or name == "cls_token":
            assert not value.any(), name
        else:
            assert abs(value.std() / 0.02 - 1) < 5 / math.sqrt(2 * value.numel()), name


def test_the_mixer_starts_as_the_authors() -> None:
    """flax's ``lecun_normal``, and a head of zeros."""
    params = models.mlp_mixer(depth=1).init(random.key(0)).params
    for name, value in params.items():
        if value.ndim > 1 and not name.startswith("head"):
            std = 1 / math.sqrt(value[0].numel())
            assert abs(value.std() / std - 1) < 5 / math.sqrt(2 * value.numel()), name
            assert value.abs().max() < 2.3 * std, "cut"
        elif not ("norm" in name and name.endswith("weight")):
            assert not value.any(), name


def test_dropout_draws_from_the_key_in_training_alone() -> None:
    model = models.vit_tiny(patch=8, width=12, depth=2, dropout=0.5)
    variables = doubled(model)
    images = random.normal(random.key(1), (4, 3, 32, 32)).double()
    a, b, c = (model.apply(variables, images, key=random.key(i), train=True)[0] for i in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    plain = models.vit_tiny(patch=8, width=12, depth=2)
    still, _ = model.apply(variables, images, key=random.key(0))
    assert torch.equal(still, plain.apply(variables, images)[0])


def test_another_size_is_refused() -> None:
    for make in (models.vit_tiny, models.mlp_mixer):
        model = make(patch=8, width=12, depth=1)
        variables = model.init(random.key(0))
        with pytest.raises(ValueError, match="the images are 24x24 pixels; this model takes 32x32"):
            model.apply(variables, torch.zeros(1, 3, 24, 24))
        assert models.takes_images(model, 32)
        assert not models.takes_images(model, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, "patch is 5; it must be 1, 2, 4, 8, 16 or 32"),
        ({"patch": True}, "patch is True; it must be"),
        ({"patch": 0}, "patch is 0; it must be"),
        ({"patch": 64}, "patch is 64; it must be"),
        ({"heads": 5}, "heads is 5; it must divide width, which is 192"),
        ({"heads": 0}, "heads is 0; it must be a whole number from 1"),
        ({"depth": 10**9}, "depth is 1000000000; it must be a whole number from 1 up to 1,000"),
        ({"width": 1.5}, "width is 1.5; it must be a whole number"),
        ({"width": 9 * 10**8}, "at most 200,000,000 are accepted"),
        ({"dropout": 1}, "dropout is 1; it must lie in"),
        ({"num_classes": 0}, "num_classes is 0; it must be a whole number"),
    ],
)
def test_options_of_the_transformer_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.vit_tiny(**options)


@pytest.mark.parametrize(
    "name", ["patch", "width", "depth", "token_hidden", "channel_hidden", "num_classes"]
)
def test_options_of_the_mixer_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be"):
        models.mlp_mixer(**{name: 0})


def test_attention_maps_and_has_second_derivatives() -> None:
    """By vmap over models, and by forward over reverse mode."""
    model = models.vit_tiny(patch=16, width=6, depth=1)
    keys = random.split(random.key(0), 2)
    many = torch.vmap(model.init)(keys)
    images = random.normal(random.key(1), (2, 3, 32, 32))
    together = torch.vmap(lambda v: model.apply(v, images)[0])(many)
    for i, key in enumerate(keys):
        alone = model.init(key)
        assert tree.equal(tree.map(lambda v, i=i: v[i], many), alone)
        torch.testing.assert_close(together[i], model.apply(alone, images)[0])
    params = model.init(keys[0]).params

    def slope(params: Params) -> Params:
        return torch.func.grad(lambda p: model.apply(Variables(p, {}), images)[0].sum())(params)

    _, product = torch.func.jvp(slope, (params,), (params,))
    assert all(p.isfinite().all() for p in product.values())
