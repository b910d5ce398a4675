"""A PyTorch checkpoint whose pickle calls a function. It must not be called."""

import os
from pathlib import Path

import torch

COMMAND = ("import", "PATH", "--out", "OUT", "--verify", "no")
EXPECTED = "the pickle contains code"


class Attack:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.made),)


def write(folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save({"model": Attack(folder / "executed"), "model_args": {}}, path)
    return path
