"""Offload over good and bad networks: models, frames, figures."""
