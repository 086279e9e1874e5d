"""Writes ``attributions.json``: attributions by captum, in float64.

    pip install captum==0.9.0 && python -m tests.golden.make_attributions

The network and its images are ``tests/helpers/tiny_conv.py``. The tests make the same with
``analysis.attributions``; no test needs the package.
"""

import json
from pathlib import Path

from tests.helpers.tiny_conv import LABELS, TinyConv, images

STEPS = 20


def main() -> None:
    """Write the file."""
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Saliency

    module, x = TinyConv().eval(), images()
    integrated = IntegratedGradients(module)
    maps = LayerGradCam(module, module.last).attribute(x, LABELS, relu_attributions=True)
    found = {
        "gradient": Saliency(module).attribute(x, LABELS, abs=False),
        "integrated_gradients": integrated.attribute(x, target=LABELS, n_steps=STEPS),
        "baseline": integrated.attribute(x, 0.5, LABELS, n_steps=STEPS),
        "grad_cam": LayerAttribution.interpolate(maps, x.shape[-2:], "bilinear"),
    }
    values = {name: [float(f"{v:.12g}") for v in x.flatten().tolist()] for name, x in found.items()}
    source = "captum 0.9.0 in float64: tests/golden/make_attributions.py"
    text = json.dumps({"source": source, "values": values}, separators=(",", ":"))
    Path(__file__).with_name("attributions.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
