"""The classic tutorial's script, as its readers type it, with nothing of fcifar in it.

    python tutorial.py train images.npz cifar_net.pth    # trains, saves and tests
    python tutorial.py test images.npz cifar_net.pth     # loads and tests

Each ends with a line of JSON: the predictions for the test images, and how many are right.
https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

import json
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def load(path, half):
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays[f"{half}_images"]).float().div(255)
        labels = torch.from_numpy(arrays[f"{half}_labels"])
    return TensorDataset((images - 0.5) / 0.5, labels)


def train(net, trainset):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for inputs, labels in DataLoader(trainset, batch_size=4, shuffle=True):
        optimizer.zero_grad()
        outputs = net(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()


def test(net, testset):
    predictions, correct = [], 0
    with torch.no_grad():
        for images, labels in DataLoader(testset, batch_size=4, shuffle=False):
            outputs = net(images)
            _, predicted = torch.max(outputs, 1)
            predictions += predicted.tolist()
            correct += (predicted == labels).sum().item()
    return {"predictions": predictions, "correct": correct, "total": len(predictions)}


if __name__ == "__main__":
    what, data, path = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net()
    if what == "train":
        train(net, load(data, "train"))
        torch.save(net.state_dict(), path)
    else:
        print(net.load_state_dict(torch.load(path)))
    print(json.dumps(test(net, load(data, "test"))))
