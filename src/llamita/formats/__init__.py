"""Codecs of model files: bytes to values and back. The commands' work is in convert/."""
