"""The method of ``speed94`` in plain PyTorch: an ``nn.Module``, ``torch.optim`` and a loop.

Written from the descriptions: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
https://arxiv.org/abs/2404.00498, and Jordan et al., "Muon", 2024,
https://kellerjordan.github.io/posts/muon/. Autocast to bf16, ``channels_last``, images that stay on
the device, and ``torch.compile`` for the model and for Muon.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

EPOCHS, BATCH = 7, 1000
MUON_RATE, MUON_MOMENTUM = 0.2, 0.65
VECTOR_RATE, HEAD_RATE, MOMENTUM = 0.053, 0.67, 0.85
WEIGHT_DECAY = 2e-6  # per image; the losses of a batch are summed
LABEL_SMOOTHING = 0.2
WHITEN_EPOCHS = 2.6  # that train the bias of the whitening layer
WHITEN_IMAGES = 5000
CROP = 2
EVAL_BATCH = 2000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


# Model -------------------------------------------------------------------------------------------


class Group(nn.Module):
    """conv, pool, norm, GELU, conv, norm, GELU; the norms have a bias and no scale."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, 1e-12, momentum=0.4) for _ in range(2))
        self.norm1.weight.requires_grad_(False)
        self.norm2.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    """Whitening, three groups, maximum and a linear layer."""

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), num_classes: int = 10) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        sizes = (24, *widths)
        self.groups = nn.Sequential(*(Group(*sizes[i : i + 2]) for i in range(len(widths))))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        return self.head(F.max_pool2d(x, x.shape[-2:]).flatten(1)) / 256

    @torch.no_grad()
    def reset(self, images: Tensor) -> None:
        """Initialise in place, given normalised images to whiten."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
        for group in self.groups:
            for conv in (group.conv1, group.conv2):
                nn.init.dirac_(conv.weight[: conv.in_channels])
        self.head.weight.div_(self.head.weight.std())
        patches = F.unfold(images.float(), 2).transpose(1, 2).flatten(0, 1)
        # The matrix is small, and a GPU's solver takes a second to load.
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double().cpu())
        kernel = (vectors / torch.sqrt(values + 5e-4)).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([kernel, -kernel]))


# Optimizers --------------------------------------------------------------------------------------


def orthogonalize(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of a matrix close to 1, by three Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = (x / x.norm().clamp(min=1e-20)).to(dtype)
    y = y.T if x.shape[0] > x.shape[1] else y
    for _ in range(3):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.T if x.shape[0] > x.shape[1] else y).to(x.dtype)


def muon_update(
    weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor], rate: Tensor
) -> None:
    """Update convolution kernels in place, whose norms stay about the root of their outputs."""
    for weight, grad, buffer in zip(weights, grads, buffers, strict=True):
        buffer.mul_(MUON_MOMENTUM).add_(grad)
        direction = orthogonalize((grad + MUON_MOMENTUM * buffer).flatten(1))
        weight.mul_(math.sqrt(len(weight)) / weight.norm())
        weight.sub_(rate * direction.view_as(weight))


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels; ``torch.optim.Muon`` takes matrices only."""

    def __init__(self, kernels: list[Tensor], lr: float, update=muon_update) -> None:
        super().__init__(kernels, {"lr": lr})
        self.update = update
        self.buffers = [torch.zeros_like(kernel) for kernel in kernels]
        self.rate = torch.zeros((), device=kernels[0].device)  # a number would be compiled in

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        (group,) = self.param_groups
        grads = [kernel.grad for kernel in group["params"]]
        self.update(group["params"], grads, self.buffers, self.rate.fill_(group["lr"]))


def make_optimizers(net: Net, steps: int, epochs: float, batch: int, update=muon_update) -> tuple:
    """Return the optimizers, and their schedules of ``steps`` steps in ``epochs`` epochs."""
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    kernels = [p for p in trained.values() if p.ndim == 4]
    biases = [p for name, p in trained.items() if p.ndim == 1 and name != "whiten.bias"]
    decay = WEIGHT_DECAY * batch  # of each step; torch's is multiplied by the learning rate
    groups = [
        {"params": [net.whiten.bias], "lr": VECTOR_RATE, "weight_decay": decay / VECTOR_RATE},
        {"params": biases, "lr": VECTOR_RATE, "weight_decay": decay / VECTOR_RATE},
        {"params": [net.head.weight], "lr": HEAD_RATE, "weight_decay": decay / HEAD_RATE},
    ]
    muon = Muon(kernels, MUON_RATE, update)
    sgd = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)
    whiten_steps = math.ceil(steps * WHITEN_EPOCHS / epochs)

    def linear(total: int):
        return lambda step: max(0.0, 1 - step / total)

    rates = [linear(whiten_steps), linear(steps), linear(steps)]
    return (muon, sgd), (LambdaLR(muon, linear(steps)), LambdaLR(sgd, rates))


# Data --------------------------------------------------------------------------------------------


def normalize(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images in ``dtype``, normalised, with channels last in memory."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    normalized = (images.float() / 255 - mean) / std
    return normalized.to(dtype, memory_format=torch.channels_last)


def reflect_crop(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random 32x32 crop of each padded image."""
    count, span = len(padded), 2 * CROP + 1
    offsets = torch.randint(span, (2, count, 1), generator=generator, device=padded.device)
    rows, columns = offsets + torch.arange(padded.shape[-1] - 2 * CROP, device=padded.device)
    image = torch.arange(count, device=padded.device)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)  # channels_last


def epoch_batches(
    padded: Tensor,
    labels: Tensor,
    mirrored: Tensor,
    epoch: int,
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch; each image is mirrored in every other epoch."""
    images = reflect_crop(padded, generator)
    flip = (mirrored ^ (epoch % 2 == 1))[:, None, None, None]
    images = torch.where(flip, images.flip(-1), images)
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    for rows in order[: len(order) // batch * batch].split(batch):
        yield images[rows], labels[rows]


# Training ----------------------------------------------------------------------------------------


class Method:
    """A model, compiled once, that is trained from scratch by each call of ``train``."""

    def __init__(
        self,
        device: str = "cuda",
        *,
        compile: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        **model: tuple[int, ...] | int,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.net = Net(**model).to(self.device, memory_format=torch.channels_last)
        self.forward, self.update = self.net, muon_update
        if compile:
            self.forward, self.update = (
                torch.compile(f, dynamic=False) for f in (self.net, muon_update)
            )

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the summed loss of a batch."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            logits = self.forward(images)
        return F.cross_entropy(
            logits.float(), labels, label_smoothing=LABEL_SMOOTHING, reduction="sum"
        )

    def train(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        epochs: int = EPOCHS,
        batch: int = BATCH,
    ) -> None:
        """Train on uint8 images on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        torch.manual_seed(seed)  # for the initialisation
        count, device = len(labels), self.device
        normal = normalize(images, self.dtype)
        sample = torch.randperm(count, generator=generator, device=device)[:WHITEN_IMAGES]
        self.net.reset(normal[sample])
        self.net.train()
        steps = epochs * (count // batch)
        optimizers, schedules = make_optimizers(self.net, steps, epochs, batch, self.update)
        padded = F.pad(normal, (CROP,) * 4, mode="reflect")
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        for epoch in range(epochs):
            for inputs, targets in epoch_batches(padded, labels, mirrored, epoch, batch, generator):
                self.loss(inputs, targets).backward()
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images: weighted means over six views of each image."""
        self.net.eval()
        enabled = self.dtype != torch.float32
        found = []
        for part in images.split(EVAL_BATCH):
            normal = normalize(part, self.dtype)
            padded, (height, width) = F.pad(normal, (1,) * 4, mode="reflect"), normal.shape[-2:]
            shifted = [padded[:, :, i : i + height, i : i + width] for i in (0, 2)]
            total = torch.zeros((), device=self.device)
            for view, weight in zip((normal, *shifted), (0.5, 0.25, 0.25), strict=True):
                view = view.contiguous(memory_format=torch.channels_last)
                with torch.autocast(self.device.type, self.dtype, enabled=enabled):
                    both = self.forward(view).float() + self.forward(view.flip(-1)).float()
                total = total + weight / 2 * both
            found.append(total)
        return torch.cat(found)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the accuracy on uint8 images."""
        return (self.logits(images).argmax(1) == labels).float().mean().item()
