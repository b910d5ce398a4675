"""llamita: grow your own small Llama from your own text, and run it anywhere.

The names below are imported when they are first used: `import llamita` costs nothing, and running needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamita.chat import Chat
    from llamita.config import ModelConfig
    from llamita.convert.export import export
    from llamita.convert.import_model import import_model
    from llamita.data.prepare import prepare
    from llamita.engine import Model, Sampler, Session, load
    from llamita.errors import LlamitaError
    from llamita.sampling import RuntimeOptions, SamplingParams
    from llamita.training.pretraining import train

    __version__: str

# public name -> the module it lives in
_HOMES = {
    "Chat": "llamita.chat",
    "LlamitaError": "llamita.errors",
    "Model": "llamita.engine",
    "ModelConfig": "llamita.config",
    "RuntimeOptions": "llamita.sampling",
    "Sampler": "llamita.engine",
    "SamplingParams": "llamita.sampling",
    "Session": "llamita.engine",
    "export": "llamita.convert.export",
    "import_model": "llamita.convert.import_model",
    "load": "llamita.engine",
    "prepare": "llamita.data.prepare",
    "train": "llamita.training.pretraining",
}

__all__ = [
    "Chat",
    "LlamitaError",
    "Model",
    "ModelConfig",
    "RuntimeOptions",
    "Sampler",
    "SamplingParams",
    "Session",
    "__version__",
    "export",
    "import_model",
    "load",
    "prepare",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("llamita")  # pyproject.toml is where it is written
        except PackageNotFoundError:
            return "0+not.installed"
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llamita' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
