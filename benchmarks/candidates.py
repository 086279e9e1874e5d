"""Everyone who makes a training step, by name."""

import torch

from benchmarks import jax_steps, plain
from fcifar.bench import bench, reference_models
from fcifar.bench.bench import Make

CANDIDATES: dict[str, Make] = {
    "module": bench.module,
    "module_compiled": plain.module_compiled,
    "fcifar_eager": bench.fcifar_eager,
    "fcifar_compiled": bench.fcifar_compiled,
    **jax_steps.CANDIDATES,
}
NETWORKS = tuple(reference_models.MODULES)  # those of the tutorials
BATCHES = (1, 4, 20, 64, 512, 2048)
DEVICES = ("cpu", "cuda")


def why_not(name: str, device: str) -> str | None:
    """Why somebody cannot be measured on a device; None where they can."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "needs a CUDA device, and torch finds none"
    return jax_steps.why_not(device) if name in jax_steps.CANDIDATES else None
