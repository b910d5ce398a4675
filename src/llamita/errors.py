"""The tree of errors that a person can cause and mend; the command line prints them in one line and exits with 2.

Every message says: what failed: where (file, tensor, line): expected X, found Y; what to do.
A bug in llamita itself is an assert, not one of these.
"""


class LlamitaError(Exception):
    """Root of all errors that a user can cause and mend."""


class ConfigError(LlamitaError):
    """A flag or a configuration value is out of its range, or two of them contradict each other."""


class SourceError(LlamitaError):
    """A text source cannot be read: missing, wrong encoding, broken JSON, wrong key, too small."""


class TokenizerError(LlamitaError):
    """A tokenizer file is damaged, of an unknown kind, or does not fit the model or the data."""


class StoreError(LlamitaError):
    """A token store is damaged, incomplete, or was made with another tokenizer."""


class CheckpointError(LlamitaError):
    """A checkpoint directory is missing, damaged, or does not fit what is asked of it."""


class FormatError(LlamitaError):
    """A model file (GGUF, llama2.c, Hugging Face, Meta) is damaged or of a kind that is not supported."""


class TrainingError(LlamitaError):
    """Training cannot start or go on: diverged, nothing to train on, device missing."""


class EngineError(LlamitaError):
    """The C engine refused: the message is the engine's own."""


class ChatError(LlamitaError):
    """A chat cannot go on: its template cannot be rendered, or what was said does not fit the context."""


class NetworkError(LlamitaError):
    """A download failed: offline, not found, or the bytes are not the expected ones."""


class OutputError(LlamitaError):
    """A result cannot be written: disk full, no permission, or something else is already there."""
