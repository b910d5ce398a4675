"""Model files of other programs, one owner module each; the list of tensors and the RoPE order they all share."""
