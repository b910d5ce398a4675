"""Segments of a text and messages of a chat, as the engine's encoders take them."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

from llamita.engine.library import MessageStruct, TextSegmentStruct, id_array


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """A segment of a text.

    trusted: control tokens spelled out in it become tokens; otherwise they stay text.
    ids: for generated text, the ids that it was generated as, which are kept; else ().
    """

    text: bytes
    trusted: bool = False
    ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a chat. role: "system", "user" or "assistant".

    ids: for generated content, the ids that it was generated as, which are kept; else ().
    """

    role: str
    content: bytes
    ids: tuple[int, ...] = ()


def segment_structs(segments: Sequence[TextSegment]) -> Any:
    """The segments as an array of C structures."""
    return (TextSegmentStruct * len(segments))(
        *(TextSegmentStruct(each.text, len(each.text), each.trusted, *_ids(each)) for each in segments)
    )


def message_structs(messages: Sequence[Message]) -> Any:
    """The messages as an array of C structures."""
    return (MessageStruct * len(messages))(
        *(MessageStruct(each.role.encode(), each.content, len(each.content), *_ids(each)) for each in messages)
    )


def _ids(said: TextSegment | Message) -> tuple[Any, int]:
    """The ids for the structure; NULL and 0 if the text was not generated."""
    array = id_array(said.ids) if said.ids else None
    return (None if array is None else (ctypes.c_int32 * len(array))(*array.tolist())), len(said.ids)
