"""The net, the data, and what a device does with both."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ORDER = np.random.default_rng(0).permutation(1797)  # of scikit-learn's images
TEST = 297  # of them, which no device has


class Net(nn.Module):
    """One convolution and two layers, for images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=3)
        self.hidden = nn.Linear(8 * 3 * 3, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, images):
        seen = nn.functional.max_pool2d(nn.functional.relu(self.conv(images)), 2)
        return self.out(nn.functional.relu(self.hidden(seen.flatten(1))))


def load_data(partition, partitions, batch_size):
    """A device's images, for training and for its own evaluation."""
    mine = ORDER[TEST:][partition::partitions]
    cut = len(mine) * 4 // 5
    return _loader(mine[:cut], batch_size, shuffle=True), _loader(mine[cut:], batch_size)


def load_test_data():
    """Images that no device has."""
    return _loader(ORDER[:TEST], 64)


def train(net, loader, epochs, learning_rate):
    """Train with SGD; the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    net.train()
    for _ in range(epochs):
        losses = []
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net, loader):
    """Loss and accuracy."""
    net.eval()
    loss, correct = 0.0, 0
    for images, labels in loader:
        outputs = net(images)
        loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
        correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(loader.dataset), correct / len(loader.dataset)


def _loader(which, batch_size, shuffle=False):
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[which] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return DataLoader(TensorDataset(images, torch.tensor(labels[which])), batch_size, shuffle=shuffle)
