"""Python bindings of the C engine (engine/include/llamita.h): one class per C object.

Shapes: n ids of a text, V vocabulary size. Logits are float32, nats float64, ids int32. Errors are
EngineError with the engine's message. Logits depend only on the model file, the adapters and the
ids: not on threads, kernels or what else a session holds.
"""

from llamita.engine.adapter import Adapter, AdapterUses
from llamita.engine.bpe_trainer import BpeTrainer, BpeUnit
from llamita.engine.embedding import EMBEDDING_SEQUENCES, embed_ids
from llamita.engine.generation import Generation, encode_prompt, text_pieces
from llamita.engine.grammar import Grammar, GrammarState
from llamita.engine.library import KV_TYPES, SPECULATIONS, AdapterInfo, Ids, ModelInfo, kernels, utf8_complete, version
from llamita.engine.model import PACKAGED_MODEL, Model, load
from llamita.engine.prompt_cache import keep_common_ids, load_prompt_cache, save_prompt_cache
from llamita.engine.sampler import Sampler
from llamita.engine.scheduler import Event, Request, Scheduler, SchedulerStats
from llamita.engine.session import Session
from llamita.engine.tensor_codec import dequantize, quantize, tensor_types
from llamita.engine.text import Message, TextSegment
from llamita.engine.text_index import (
    MAX_QUERY_BYTES,
    Found,
    IndexArrays,
    IndexedText,
    TextIndex,
    build_text_index,
    num_entries,
)
from llamita.engine.tokenizer import DocumentTokenizer

__all__ = [
    "EMBEDDING_SEQUENCES",
    "KV_TYPES",
    "MAX_QUERY_BYTES",
    "PACKAGED_MODEL",
    "SPECULATIONS",
    "Adapter",
    "AdapterInfo",
    "AdapterUses",
    "BpeTrainer",
    "BpeUnit",
    "DocumentTokenizer",
    "Event",
    "Found",
    "Generation",
    "Grammar",
    "GrammarState",
    "Ids",
    "IndexArrays",
    "IndexedText",
    "Message",
    "Model",
    "ModelInfo",
    "Request",
    "Sampler",
    "Scheduler",
    "SchedulerStats",
    "Session",
    "TextIndex",
    "TextSegment",
    "build_text_index",
    "dequantize",
    "embed_ids",
    "encode_prompt",
    "keep_common_ids",
    "kernels",
    "load",
    "load_prompt_cache",
    "num_entries",
    "quantize",
    "save_prompt_cache",
    "tensor_types",
    "text_pieces",
    "utf8_complete",
    "version",
]
