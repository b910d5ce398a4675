"""Converts between floats and the tensor types of GGUF."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from llamita.engine.library import TensorTypeStruct, call, floats_pointer, load_library


def tensor_types() -> list[tuple[str, int, int, int]]:
    """The tensor types that the engine reads: name, GGUF's id, elements and bytes of a block."""
    found: list[tuple[str, int, int, int]] = []
    info = TensorTypeStruct()
    while load_library().llamita_tensor_type(len(found), ctypes.byref(info)):
        found.append((info.name.decode(), info.id, info.block_elements, info.block_bytes))
    return found


def dequantize(blocks: npt.NDArray[np.uint8], type_id: int, out: npt.NDArray[np.float32]) -> None:
    """Convert blocks of the type with this id to floats; both arrays are contiguous, and out has
    exactly the number of elements."""
    assert blocks.dtype == np.uint8 and blocks.flags.c_contiguous
    assert out.dtype == np.float32 and out.flags.c_contiguous and out.flags.writeable
    call("dequantize", type_id, blocks.ctypes.data, out.size, out.ctypes.data_as(floats_pointer))


def quantize(rows: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> float:
    """Quantize rows [N, row length] to a GGUF type such as "Q4_K"; returns Σ(stored - x)².

    Both arrays are contiguous, and out has exactly the size of the blocks. Other threads run
    meanwhile. Raises EngineError for a type that the engine does not write, rows that are not whole
    blocks, an `out` of another size, or a number that the type cannot hold.
    """
    assert rows.dtype == np.float32 and rows.ndim == 2 and rows.flags.c_contiguous
    assert out.dtype == np.uint8 and out.flags.c_contiguous and out.flags.writeable
    num_rows, row_length = rows.shape
    squared_error = ctypes.c_double()
    values = rows.ctypes.data_as(floats_pointer)
    call("quantize", type.encode(), values, row_length, num_rows, out.ctypes.data, out.nbytes, squared_error)
    return squared_error.value
