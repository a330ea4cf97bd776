"""Quantisation-aware fine-tuning: a user's own trainer on the model with simulated 8-bit grids (torchao)."""
