"""The tutorials' training and test loops, as published.

A DataLoader with two workers, PIL images through ToTensor and Normalize, an nn.Module, optim.SGD,
``loss.backward()``, and ``loss.item()`` in each step.
https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from fcifar.bench.reference_models import MODULES, make_optimizer
from fcifar.data import Dataset
from fcifar.recipes import Recipe

NORMALISED = (transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
TRANSFORMS: dict[str, Callable[[str], Callable[[Any], Any]]] = {
    "random_flip": lambda p: transforms.RandomHorizontalFlip(float(p or 0.5)),
    "random_rotation": lambda degrees: transforms.RandomRotation(float(degrees)),
    "random_crop": lambda padding: transforms.RandomCrop(32, padding=int(padding)),
}


def make_augment(names: Sequence[str]) -> list[Callable[[Any], Any]]:
    """Return torchvision's versions of augmentations such as "random_crop:4"."""
    parts = (name.partition(":") for name in names)
    return [TRANSFORMS[name](option) for name, _, option in parts]


class PILDataset(TorchDataset):
    """Makes a PIL image from an array for each item, as torchvision's CIFAR10 does."""

    def __init__(self, images: Tensor, labels: Tensor, *transform: Callable[[Any], Any]) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(transform or NORMALISED)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def train(recipe: Recipe, dataset: Dataset, *, epochs: int) -> float:
    """Train from scratch and validate after each epoch; return the seconds."""
    tensors = (transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std))
    transform = (*make_augment(recipe.augment), *tensors)
    images = PILDataset(dataset.train_images, dataset.train_labels, *transform)
    held_out = int(recipe.valid_fraction * len(images))
    order = torch.randperm(len(images)).tolist()
    # The tutorial augments the validation images too.
    loaders = [
        DataLoader(
            images,
            batch_size=recipe.batch_size,
            sampler=SubsetRandomSampler(rows),
            num_workers=2,
            drop_last=recipe.drop_last and training,
        )
        for rows, training in ((order[held_out:], True), (order[:held_out], False))
    ]
    net = MODULES[recipe.model](num_classes=len(dataset.classes), **recipe.model_options)
    criterion = nn.CrossEntropyLoss()
    optimizer = make_optimizer(recipe, net.parameters())
    started = time.perf_counter()
    for _ in range(epochs):
        net.train()
        running_loss = 0.0
        for inputs, labels in loaders[0]:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        if held_out:
            net.eval()
            with torch.no_grad():
                for inputs, labels in loaders[1]:
                    running_loss += criterion(net(inputs), labels).item()
    return time.perf_counter() - started


def accuracy(net: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 4) -> float:
    """Return the accuracy of ``net`` over a DataLoader."""
    dataset = PILDataset(images, labels)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=False, num_workers=2)
    correct = total = 0
    with torch.no_grad():
        for inputs, targets in loader:
            _, predicted = torch.max(net(inputs), 1)
            total += targets.size(0)
            correct += (predicted == targets).sum().item()
    return correct / total
