"""The best plain PyTorch: images on the device, a compiled module, a fused optimizer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar.bench import reference_models
from fcifar.bench.bench import repeated
from fcifar.bench.timing import Candidate, wait_for
from fcifar.data import Dataset
from fcifar.recipes import Recipe
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training


def module_compiled(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """Gather, normalisation, forward and backward are compiled; nobody waits for the loss."""
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    net = reference_models.make_module(recipe, training.init().state.variables.params)
    optimizer = reference_models.make_optimizer(recipe, net.parameters(), fused=True)
    normalise = reference_models.make_normalise(recipe, runtime.device)
    inputs = repeated(training.inputs)
    images, labels = training.train
    on_cuda = runtime.device.startswith("cuda")

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(net(normalise(images[batch])), labels[batch])

    # On CUDA that mode captures graphs, without which launches take most of the time.
    compiled = torch.compile(
        loss, fullgraph=True, dynamic=False, mode="reduce-overhead" if on_cuda else None
    )

    def once() -> None:
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        compiled(next(inputs).indices).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Candidate(once, wait_for(runtime.device), params=lambda: dict(net.state_dict()))
