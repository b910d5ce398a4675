"""What the commands import, export, quantize and inspect do with model files."""
