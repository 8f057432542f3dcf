"""Handwritten digits, learned by a federation whose ledger is on a node."""
