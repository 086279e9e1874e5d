"""The tutorial's own loops, as its page has them: the yardstick.

DataLoader with two workers, PIL images through ToTensor and Normalize, an nn.Module, optim.SGD,
``loss.backward()``, ``loss.item()`` each step; and its loop over the test images.
https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from fcifar.data import Dataset
from fcifar.runs.yardsticks import LeNet

NORMALISED = (transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


class PictureDataset(TorchDataset):
    """Does for each item what torchvision's CIFAR10 does: a PIL image out of an array."""

    def __init__(self, images: Tensor, labels: Tensor, *transform: Callable[[Any], Any]) -> None:
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(transform or NORMALISED)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def train(dataset: Dataset, *, epochs: int, batch_size: int, max_steps: int | None = None) -> float:
    """Train from scratch; seconds for ``epochs`` epochs, or for ``max_steps`` steps if fewer."""
    pictures = PictureDataset(dataset.train_images, dataset.train_labels)
    loader = DataLoader(pictures, batch_size=batch_size, shuffle=True, num_workers=2)
    net = LeNet(num_classes=len(dataset.classes))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    started, steps = time.perf_counter(), 0
    for _ in range(epochs):
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            steps += 1
            if steps == max_steps:
                return time.perf_counter() - started
    return time.perf_counter() - started


def accuracy(net: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 4) -> float:
    """The accuracy of ``net``, counted over a DataLoader."""
    loader = DataLoader(
        PictureDataset(images, labels), batch_size=batch_size, shuffle=False, num_workers=2
    )
    correct = total = 0
    with torch.no_grad():
        for inputs, targets in loader:
            _, predicted = torch.max(net(inputs), 1)
            total += targets.size(0)
            correct += (predicted == targets).sum().item()
    return correct / total
