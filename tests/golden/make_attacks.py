"""Writes ``attacks.json``: adversarial images by torchattacks, in float64.

    pip install torchattacks==3.5.1 && python -m tests.golden.make_attacks

The network and its images are ``tests/helpers/tiny_conv.py``. The random start of PGD is replaced
by fixed values. The tests make the same with ``analysis.attacks``; no test needs the package.
"""

import json
from pathlib import Path
from unittest.mock import patch

import torch

from tests.helpers.tiny_conv import LABELS, TinyConv, images, start

EPS, STEP, L2_EPS, L2_STEP, STEPS = 0.05, 0.0125, 0.8, 0.2, 10


def main() -> None:
    """Write the file."""
    import torchattacks

    module = TinyConv().eval()
    fixed = patch.object(torch.Tensor, "uniform_", lambda self, low, high: EPS * start())
    attacks = {
        "fgsm": torchattacks.FGSM(module, eps=EPS),
        "pgd": torchattacks.PGD(module, eps=EPS, alpha=STEP, steps=STEPS, random_start=False),
        "pgd, start": torchattacks.PGD(module, eps=EPS, alpha=STEP, steps=STEPS),
        "pgd, l2": torchattacks.PGDL2(
            module, eps=L2_EPS, alpha=L2_STEP, steps=STEPS, random_start=False
        ),
    }
    with fixed:
        found = {name: attack(images(), LABELS) for name, attack in attacks.items()}
    # The changes are shorter to write than the images.
    changes = {
        name: [round(v, 12) for v in (x - images()).flatten().tolist()] for name, x in found.items()
    }
    source = "torchattacks 3.5.1 in float64: tests/golden/make_attacks.py"
    text = json.dumps({"source": source, "changes": changes}, separators=(",", ":"))
    Path(__file__).with_name("attacks.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
