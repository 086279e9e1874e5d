"""The tutorial's own training loop, as its page has it: the yardstick.

DataLoader with two workers, PIL images through ToTensor and Normalize, an nn.Module, optim.SGD,
``loss.backward()``, ``loss.item()`` each step.
https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

import time

import torch
from PIL import Image
from torch import nn, optim
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from fcifar.data import Dataset
from fcifar.models.lenet import _LeNet


class PictureDataset(TorchDataset):
    """Does for each item what torchvision's CIFAR10 does: a PIL image out of an array."""

    def __init__(self, dataset: Dataset) -> None:
        self.arrays = dataset.train_images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.train_labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def train(dataset: Dataset, *, epochs: int, batch_size: int, max_steps: int | None = None) -> float:
    """Train from scratch; seconds for ``epochs`` epochs, or for ``max_steps`` steps if fewer."""
    loader = DataLoader(PictureDataset(dataset), batch_size=batch_size, shuffle=True, num_workers=2)
    net = _LeNet(84, len(dataset.classes))
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
