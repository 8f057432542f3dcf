"""Consensus-based federated learning on Flower, written to an EVM chain."""
