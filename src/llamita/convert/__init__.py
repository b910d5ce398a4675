"""Import, export, quantize, verify, inspect."""
