"""Softmax regression on scikit-learn's digits, in NumPy."""

import numpy as np
from sklearn.datasets import load_digits

TEST = 297


def digits(part):
    """Images as rows of 64 numbers in [0, 1], and labels: every so many of the images."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[part]
    return images[order] / 16, labels[order]


def initial_weights():
    """Of the ten digits: 64 weights and a bias each."""
    return [np.zeros((64, 10), np.float32), np.zeros(10, np.float32)]


def train(weights, images, labels, learning_rate, steps=20):
    """A few steps down the gradient of the cross-entropy."""
    matrix, bias = (array.astype(float) for array in weights)
    for _ in range(steps):
        error = _probabilities(images, matrix, bias) - np.eye(10)[labels]
        matrix -= learning_rate * images.T @ error / len(labels)
        bias -= learning_rate * error.mean(axis=0)
    return [matrix.astype(np.float32), bias.astype(np.float32)]


def accuracy(weights, images, labels):
    """The share of images that get the right digit."""
    return float((_probabilities(images, *weights).argmax(axis=1) == labels).mean())


def _probabilities(images, matrix, bias):
    scores = images @ matrix + bias
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
