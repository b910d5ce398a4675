"""The network in PyTorch: forward pass, KV cache, and a simple decoder."""
