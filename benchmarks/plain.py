"""The best plain PyTorch: images on the device, a compiled module, a fused optimizer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar.data import Dataset
from fcifar.recipes import Recipe
from fcifar.runs import yardsticks
from fcifar.runs.bench import repeated
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime
from fcifar.runs.timing import Contender, wait_for


def module_compiled(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Contender:
    """Gather, normalisation, forward and backward are compiled; nobody waits for the loss."""
    program = build(recipe, runtime, dataset, compiled=False)
    net = yardsticks.make_module(recipe, program.init().state.variables.params)
    optimizer = yardsticks.make_optimizer(recipe, net.parameters(), fused=True)
    rows, normalise = repeated(program.rows_from), yardsticks.make_normalise(recipe, runtime.device)
    images, labels = program.train
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
        compiled(next(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(once, wait_for(runtime.device), params=lambda: dict(net.state_dict()))
