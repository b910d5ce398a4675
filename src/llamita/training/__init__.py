"""Training: from a token store to a checkpoint."""
