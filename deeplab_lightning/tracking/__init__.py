"""Weights & Biases: modes, what is logged, and what is read back."""
