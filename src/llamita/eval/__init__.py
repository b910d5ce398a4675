"""Evaluates a model: bits per byte, samples, memorization."""
