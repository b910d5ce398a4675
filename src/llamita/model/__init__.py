"""The network in PyTorch: forward, cache, and the slow, obvious decoder."""
