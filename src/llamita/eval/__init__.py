"""Judges a model: bits per byte, samples, memorization."""
