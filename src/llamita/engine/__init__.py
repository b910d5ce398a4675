"""Python bindings of the C engine (engine/include/llamita.h): one class per C object.

Shapes: n ids of a text, V vocabulary size. Logits are float32, nats float64, ids int32. Errors are
EngineError with the engine's message. Logits depend only on the model file, the adapters and the
ids: not on threads, kernels or what else a session holds.
"""

from llamita.engine.adapter import Adapter, AdapterUses
from llamita.engine.bpe_trainer import BpeTrainer, BpeUnit
from llamita.engine.embedding import EMBEDDING_SEQUENCES, PASS_TOKENS, embed_ids
from llamita.engine.generation import Generation, encode_prompt, text_pieces
from llamita.engine.grammar import Grammar, GrammarState
from llamita.engine.library import KV_TYPES, SPECULATIONS, AdapterInfo, Ids, ModelInfo, kernels, utf8_complete, version
from llamita.engine.model import PACKAGED_MODEL, Model, load
from llamita.engine.sampler import Sampler
from llamita.engine.scheduler import Event, Request, Scheduler, SchedulerStats
from llamita.engine.session import Session
from llamita.engine.tensor_codec import dequantize, quantize, tensor_types
from llamita.engine.text import Message, TextSegment
from llamita.engine.tokenizer import DocumentTokenizer

__all__ = [
    "EMBEDDING_SEQUENCES",
    "KV_TYPES",
    "PACKAGED_MODEL",
    "PASS_TOKENS",
    "SPECULATIONS",
    "Adapter",
    "AdapterInfo",
    "AdapterUses",
    "BpeTrainer",
    "BpeUnit",
    "DocumentTokenizer",
    "Event",
    "Generation",
    "Grammar",
    "GrammarState",
    "Ids",
    "Message",
    "Model",
    "ModelInfo",
    "Request",
    "Sampler",
    "Scheduler",
    "SchedulerStats",
    "Session",
    "TextSegment",
    "dequantize",
    "embed_ids",
    "encode_prompt",
    "kernels",
    "load",
    "quantize",
    "tensor_types",
    "text_pieces",
    "utf8_complete",
    "version",
]
