"""Writes ``epsilon.json``: epsilon of DP-SGD by three accountants, and published values.

    pip install dp-accounting==0.6.0 opacus==1.6.0 && python tests/golden/make_epsilon.py

``pld`` is dp-accounting's from privacy loss distributions, ``rdp`` its from Renyi divergences, and
``prv`` Opacus's, which is at most 0.01 above the truth. ``mironov`` is the Renyi accountant with
the conversion of Mironov (2017), which TensorFlow Privacy used for the values that its tutorial
published in January 2019 (``published``: https://github.com/tensorflow/privacy, commit 047e1ee).
"""

import json
import math
from pathlib import Path
from typing import Any

# noise, size, batch, steps, delta, published
CASES: list[tuple[float, int, int, int, float, float | None]] = [
    (1.12, 60_000, 256, 60 * 60_000 // 256, 1e-5, 2.92),
    (0.6, 60_000, 256, 30 * 60_000 // 256, 1e-5, 9.74),
    (1.2, 60_000, 256, 10 * 60_000 // 256, 1e-5, 1.20),
    (1.0, 50_000, 500, 1000, 1e-5, None),
]


def values(
    noise: float, size: int, batch: int, steps: int, delta: float, published: float | None
) -> dict[str, Any]:
    import dp_accounting as dp
    from dp_accounting import pld, rdp
    from opacus.accountants import PRVAccountant

    event = dp.PoissonSampledDpEvent(batch / size, dp.GaussianDpEvent(noise))
    accountants = {"pld": pld.PLDAccountant(), "rdp": rdp.RdpAccountant()}
    found = {"noise": noise, "size": size, "batch": batch, "steps": steps, "delta": delta}
    for name, accountant in accountants.items():
        accountant.compose(event, steps)
        found[name] = float(accountant.get_epsilon(delta))
    orders, divergences = accountants["rdp"]._orders, accountants["rdp"]._rdp
    found["mironov"] = min(
        float(r - math.log(delta) / (a - 1)) for a, r in zip(orders, divergences, strict=True)
    )
    prv = PRVAccountant()
    prv.history = [(noise, batch / size, steps)]
    found["prv"] = float(prv.get_epsilon(delta))
    return {**found, "published": published}


if __name__ == "__main__":
    path = Path(__file__).with_name("epsilon.json")
    path.write_text(json.dumps([values(*case) for case in CASES], indent=1) + "\n")
