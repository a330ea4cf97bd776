"""Policies judged on simulated devices."""
