"""Every implementation of a training step, by name, with the best plain PyTorch among them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import jax_candidates
from fcifar.bench import bench, reference_models
from fcifar.bench.bench import Make
from fcifar.bench.timing import Candidate, wait_for
from fcifar.data import Dataset
from fcifar.recipes import Recipe
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training


def module_compiled(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """Compile gather, normalisation, forward and backward; fused optimizer; no ``loss.item()``."""
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    net = reference_models.make_module(recipe, training.init().state.variables.params)
    optimizer = reference_models.make_optimizer(recipe, net.parameters(), fused=True)
    normalise = reference_models.make_normalise(recipe, runtime.device)
    inputs = bench.repeated(training.inputs)
    images, labels = training.train
    on_cuda = runtime.device.startswith("cuda")

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(net(normalise(images[batch])), labels[batch])

    # On CUDA this mode captures graphs; without them launches take most of the time.
    mode = "reduce-overhead" if on_cuda else None
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, mode=mode)

    def once() -> None:
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        compiled(next(inputs).indices).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Candidate(once, wait_for(runtime.device), params=lambda: dict(net.state_dict()))


CANDIDATES: dict[str, Make] = {
    "module": bench.module,
    "module_compiled": module_compiled,
    "fcifar_eager": bench.fcifar_eager,
    "fcifar_compiled": bench.fcifar_compiled,
    **jax_candidates.CANDIDATES,
}
MODELS = tuple(reference_models.MODULES)  # the tutorials' models
BATCHES = (1, 4, 20, 64, 512, 2048)
DEVICES = ("cpu", "cuda")


def why_not(name: str, device: str) -> str | None:
    """Return why a candidate cannot run on a device, or None if it can."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return "needs a CUDA device, and torch finds none"
    return jax_candidates.why_not(device) if name in jax_candidates.CANDIDATES else None
