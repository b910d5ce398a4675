"""Turns a token store into a checkpoint: the loop, and what it is made of."""
