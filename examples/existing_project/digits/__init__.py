"""Handwritten digits, learned by a federation."""
