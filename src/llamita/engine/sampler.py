"""Chooses the next token from logits."""

from __future__ import annotations

import ctypes
import dataclasses
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from llamita.engine.library import Owned, SamplerParamsStruct, call, floats_pointer, int32, load_library
from llamita.engine.model_file import ModelFile
from llamita.errors import EngineError
from llamita.sampling import DEFAULT_SAMPLING, SamplingParams


class Sampler(Owned):
    """The steps of SamplingParams. For one thread."""

    _kind = "sampler"

    def __init__(
        self,
        vocab_size: int,
        params: SamplingParams = DEFAULT_SAMPLING,
        *,
        model: ModelFile | None = None,
        **overrides: Any,
    ) -> None:
        """model: whose tokens end the repetitions that DRY penalizes; None: no token does.
        overrides: fields of params by name. Raises EngineError for a value out of its range."""
        params = dataclasses.replace(params, **overrides)
        raw, self.seed = sampler_struct(params)
        raw.model = None if model is None else model._handle
        self.is_greedy = params.temperature == 0
        handle = ctypes.c_void_p()
        call("sampler_open", ctypes.byref(raw), int32("vocab_size", vocab_size), ctypes.byref(handle))
        self._own(handle.value)
        self._vocab_size = vocab_size

    def begin_text(self) -> None:
        """Begin another text: the penalties forget the tokens before. The random numbers go on."""
        load_library().llamita_sampler_begin_text(self._handle)

    def accept(self, id: int) -> None:
        """Count a token of the text for the penalties."""
        load_library().llamita_sampler_accept(self._handle, int32("id", id))

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The next id, from logits float32 [V]."""
        array = np.ascontiguousarray(logits, dtype=np.float32)
        if array.shape != (self._vocab_size,):
            raise EngineError(f"logits: expected [{self._vocab_size}], found {list(array.shape)}")
        picked = ctypes.c_int32()
        call("sampler_pick", self._handle, array.ctypes.data_as(floats_pointer), ctypes.byref(picked))
        return picked.value


def sampler_struct(params: SamplingParams) -> tuple[SamplerParamsStruct, int]:
    """The parameters as the C structure, and the seed, which is random if there is none. Raises
    EngineError."""
    seed = secrets.randbits(63) if params.seed is None else params.seed
    if not 0 <= seed < 2**64:
        raise EngineError(f"seed: expected 0 to 2**64 - 1, found {seed}")
    raw = SamplerParamsStruct(
        **{
            field.name: int32(field.name, value) if isinstance(value, int) else value
            for field in dataclasses.fields(params)
            if (value := getattr(params, field.name)) is not None and field.name != "seed"
        },
        seed=seed,
    )
    return raw, seed
