"""Architectures of torchvision and timm as they come: taken, trained for a step, evaluated."""

import importlib.util
import re
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from fcifar import optim, random
from fcifar.models import from_module
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step, normalize
from tests.helpers.pages import ROOT

TORCHVISION = """
convnext_base convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
efficientnet_b6 efficientnet_b7 efficientnet_v2_m efficientnet_v2_s googlenet mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
regnet_y_16gf regnet_y_1_6gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101
resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn
vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet50_2
"""
TORCHVISION_OF_SIZE = "vit_b_16 vit_b_32"  # with image_size=32
TIMM = """
convmixer_768_32 cpubone_nano crossvit_tiny_240 cs3darknet_focus_s cspnext_tiny davit_tiny
densenet121 dla46x_c dpn48b edgenext_xx_small efficientvim_m1 efficientvit_b0 efficientvit_m0
ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnet_050 hardcorenas_b
hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto lcnet_035 lcnetv2_small legacy_seresnet18
legacy_xception lowformer_b0 mnasnet_050 mobilevit_xxs mvitv2_tiny nextvit_small poolformerv2_s12
pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18
rexnet_100 sam2_hiera_tiny selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs test_byobnet test_convnext test_mambaout test_nfnet test_resnet test_vit
tiny_vit_5m_224 tresnet_m twins_svt_small xception41p xcit_nano_12_p8_224
"""
TIMM_OF_SIZE = """
cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny deit_tiny_patch16_224 eca_botnext26ts_256
efficientformerv2_s0 eva02_tiny_patch14_224 gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224 levit_128s
maxvit_pico_rw_256 nest_tiny pit_ti_224 swin_s3_tiny_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
test_vit_relpos tnt_s_legacy_patch16_224 visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224
volo_d1_224
"""  # with img_size=32
ZOO = [
    *(("torchvision", name, {}) for name in TORCHVISION.split()),
    *(("torchvision", name, {"image_size": 32}) for name in TORCHVISION_OF_SIZE.split()),
    *(("timm", name, {}) for name in TIMM.split()),
    *(("timm", name, {"img_size": 32}) for name in TIMM_OF_SIZE.split()),
]
# A cache in evaluation, a table that is resized, layers with two names, several results.
QUICK = ("levit_128s", "convit_tiny", "coat_lite_tiny", "googlenet")
NO_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install timm"
)


def _param(package: str, name: str, options: dict[str, int]) -> object:
    marks = [NO_TIMM] if package == "timm" else []
    if name not in QUICK:
        marks.append(pytest.mark.slow)
    return pytest.param(package, name, options, marks=marks, id=f"{package}-{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "name", "options"), [_param(*each) for each in ZOO])
def test_it_is_taken_and_predicts_as_it_does_by_itself(
    package: str, name: str, options: dict[str, int]
) -> None:
    def make() -> nn.Module:
        if package == "torchvision":
            return torchvision.models.get_model(name, num_classes=10, **options)
        import timm

        return timm.create_model(name, num_classes=10, **options)

    state_before = torch.get_rng_state()
    model, optimizer = from_module(make), optim.sgd(0.01)
    state = init_train_state(model, optimizer, key=random.key(0))
    assert torch.equal(torch.get_rng_state(), state_before)
    images = random.randint(random.key(1), (2, 3, 32, 32), 0, 256).to(torch.uint8)
    batch = Batch(images, torch.tensor([1, 2]))
    after, metrics = make_train_step(model, optimizer)(state, batch)
    assert metrics.loss.isfinite()
    assert all(value.isfinite().all() for value in after.variables.params.values())
    module = make().eval()
    torch.set_rng_state(state_before)
    values = OrderedDict({**state.variables.params, **state.variables.buffers})
    values._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    missing, unknown = module.load_state_dict(values, strict=False)
    assert not unknown
    assert bool(missing) == (name in ("coat_tiny", "coat_lite_tiny")), "where a layer has two names"
    with torch.no_grad():
        expected = module(normalize()(images))
    logits = make_eval_step(model)(state.variables, batch).logits
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * scale)


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs/your-own.md").read_text()
    listed = re.search(r"## Architectures that work as they come\n(.*?)\n## ", page, re.DOTALL)
    assert listed is not None
    assert f"{len(ZOO)} architectures" in listed[1]
    words = set(re.findall(r"[a-z]\w+", listed[1]))
    assert not {name for _, name, _ in ZOO} - words
