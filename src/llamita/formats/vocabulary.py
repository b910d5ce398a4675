"""A tokenizer's pieces to one for every row of a model's embedding, as model files want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamita.errors import FormatError

if TYPE_CHECKING:  # so that files are read where the `tokenizers` package is not
    from llamita.tokenizer import Tokenizer

UNUSED = 5  # GGUF's number of the token type


def padded_pieces(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """Pieces and types for every row of the embedding; rows beyond the tokenizer's are unused [PADn].

    Raises FormatError if the tokenizer has more tokens than the model has rows.
    """
    pieces, types = tokenizer.pieces(), tokenizer.types()
    if len(pieces) > vocab_size:
        raise FormatError(
            f"cannot export: the tokenizer has {len(pieces)} tokens, the model {vocab_size}; they do not fit together"
        )
    pieces += [f"[PAD{i}]" for i in range(len(pieces), vocab_size)]
    return pieces, types + [UNUSED] * (vocab_size - len(types))
