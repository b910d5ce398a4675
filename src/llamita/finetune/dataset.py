"""Training and held-out data of fine-tuning: rendered conversations or pairs, or plain text.

No weights are read here, so a preview takes seconds whatever the size of the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from llamita.config import FinetuneConfig
from llamita.data.batches import ScoredDocuments
from llamita.data.documents import read_documents
from llamita.data.file_formats import PLAIN_SUFFIXES, ROW_READERS, BadRows, find_suffix, to_half_width
from llamita.data.token_store import TokenStore
from llamita.data.utf8_files import Conversions
from llamita.errors import ChatError, ConfigError, SourceError, StoreError, TrainingError
from llamita.eval.scoring import EncodedTexts
from llamita.finetune.base_model import BaseModel
from llamita.finetune.conversations import Conversation, Turn, read_conversations
from llamita.finetune.evaluate import Question, find_questions
from llamita.finetune.rendering import Example, RenderCounts, Renderer, render_examples
from llamita.tokenizer import Tokenizer, load_tokenizer

MAX_CONTEXT: Final = {"cpu": 1024, "cuda": 4096, "mps": 1024}  # defaults; attention is quadratic
MAX_QUESTIONS: Final = 256
DEFAULT_VAL_FRACTION: Final = 0.1
MAX_HELD_OUT: Final = 64  # conversations, unless --val-fraction is given
GENERAL_TOKENS: Final = 8192  # of general text: about as much as is held out
GENERAL_CHARACTERS: Final = 32768  # of each of its documents, which may be whole books


class Source(Protocol):
    """A conversation, or a pair of conversations, as read from a file."""

    @property
    def conversation(self) -> Conversation: ...

    @property
    def split_key(self) -> str:
        """Sources with the same key are on the same side of the split."""
        ...


class Rendered(Protocol):
    """A source, rendered."""

    @property
    def examples(self) -> tuple[Example, ...]: ...


S = TypeVar("S", bound=Source)
R = TypeVar("R", bound=Rendered)


@dataclasses.dataclass(frozen=True)
class Dataset(Generic[R]):
    """Rendered training and held-out data.

    context: tokens that an example may have. questions: of held-out conversations. prompt: the
    question of --prompt. val_counts: of the held-out data.
    """

    base: BaseModel
    context: int
    train: list[R]
    val: list[R]
    questions: list[Question]
    prompt: Question | None
    counts: RenderCounts
    val_counts: RenderCounts

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""
        return {
            self.counts.unit: len(self.train),
            "target_tokens": self.counts.target_tokens,
            "sha256": digest_examples(self.train),
            "val": len(self.val),
            "val_sha256": digest_examples(self.val),
        }


SftDataset = Dataset[Example]


def open_sft_dataset(config: FinetuneConfig, device: str) -> SftDataset:
    """Read and render conversations. device: "cpu", "cuda" or "mps". Raises what open_dataset raises."""

    def read(path: Path, bad: BadRows) -> Iterable[Conversation]:
        return read_conversations(path, config.columns, config.system, bad)

    return open_dataset(config, device, read, render_examples, MAX_QUESTIONS)


def open_dataset(
    config: FinetuneConfig,
    device: str,
    read: Callable[[Path, BadRows], Iterable[S]],
    render: Callable[[Sequence[S], Renderer, str, BadRows], tuple[list[R], RenderCounts]],
    max_questions: int,
) -> Dataset[R]:
    """Read, split and render the data with the base model's tokenizer and template.

    Raises CheckpointError, TokenizerError, ChatError, SourceError (naming the example),
    ConfigError, and TrainingError if there is nothing to train on.
    """
    base = BaseModel(config.checkpoint)
    context = base.context(config.context, MAX_CONTEXT[device])
    template = base.use_template(config.chat_template)
    bad = BadRows(config.skip_bad_rows, Conversions(config.encoding), half_width=config.half_width)
    if config.val is not None:
        train_sources, val_sources = list(read(config.data, bad)), list(read(config.val, bad))
    else:
        train_sources, val_sources = split_sources(list(read(config.data, bad)), config.val_fraction)
    with Renderer(base.tokenizer, base.config, context, template) as renderer:
        train, counts = render(train_sources, renderer, "train on", bad)
        val, val_counts = render(val_sources, renderer, "evaluate on", bad)
        counts.skipped, counts.files = bad.skipped, bad.conversions.describe()
        questions = find_questions([each.conversation for each in val_sources], renderer, max_questions)
        prompt = _prompt_question(config, renderer) if config.prompt else None
        all_ids = [example.ids for each in (*train, *val) for example in each.examples]
        if config.lora:
            used = set[int]().union(*map(renderer.controls_in, all_ids))
            known = _known_control_tokens(base, train_sources[0].conversation, renderer)
            base.check_control_tokens(used, known)
    base.add_end_tokens({int(ids[-1]) for ids in all_ids})
    return Dataset(base, context, train, val, questions, prompt, counts, val_counts)


def _prompt_question(config: FinetuneConfig, renderer: Renderer) -> Question:
    """--prompt, after --system."""
    turns = [Turn("user", config.prompt)]
    if config.system is not None:
        turns.insert(0, Turn("system", config.system))
    ids = renderer.prompt(Conversation(tuple(turns), "--prompt"), len(turns))
    return Question(config.prompt, tuple(ids), "", 0)


def _known_control_tokens(base: BaseModel, conversation: Conversation, chosen: Renderer) -> set[int]:
    """The control tokens that the checkpoint's own template writes, and so was trained on."""
    if base.own_template is None:
        return set()
    if base.own_template == chosen.template:
        return set(range(base.num_learned_rows))
    known = set[int]()
    plain = Conversation((Turn("user", "Hello!"), Turn("assistant", "Hello!")), "a greeting")
    try:
        with Renderer(base.tokenizer, base.config, chosen.context_tokens, base.own_template) as renderer:
            # The template may refuse roles or tools of the conversation, but hardly a greeting.
            for each in (plain, conversation):
                for num_turns in (1, len(each.turns)):
                    ids = renderer.prompt(each, num_turns)
                    known |= renderer.controls_in(np.array(ids, dtype=np.int64))
    except ChatError:
        pass
    return known


# ---------------------------------------------------------------- the split


def hold_out(keys: Sequence[str], fraction: float | None, limit: int | None) -> npt.NDArray[np.bool_]:
    """Which items are held out: those whose keys have the smallest hashes.

    So equal keys are on the same side, and with a fraction few items change sides as the data grows.
    At least one key is held out unless the fraction is 0, at most half of the distinct ones. limit:
    if no fraction is given; then new items replace held-out ones.
    """
    hashes = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    distinct = sorted(set(hashes))
    count = round(len(distinct) * (DEFAULT_VAL_FRACTION if fraction is None else fraction))
    if fraction != 0:
        count = max(1, count)
    if fraction is None and limit is not None:
        count = min(count, limit)
    chosen = set(distinct[: min(count, len(distinct) // 2)])
    return np.array([each in chosen for each in hashes], dtype=np.bool_)


def split_sources(sources: Sequence[S], fraction: float | None) -> tuple[list[S], list[S]]:
    """Training and held-out sources, in order."""
    flags = hold_out([each.split_key for each in sources], fraction, MAX_HELD_OUT).tolist()
    return _by_side(sources, flags)


T = TypeVar("T")


def _by_side(items: Sequence[T], held_out: Sequence[bool]) -> tuple[list[T], list[T]]:
    sides: tuple[list[T], list[T]] = ([], [])
    for item, is_held_out in zip(items, held_out, strict=True):
        sides[is_held_out].append(item)
    return sides


def digest_examples(items: Sequence[Rendered]) -> str:
    """sha256 (hex) of all ids and masks."""
    examples = [example for item in items for example in item.examples]
    return digest_ids([array for example in examples for array in (example.ids, example.loss_mask)])


def digest_ids(documents: Sequence[npt.NDArray[Any]]) -> str:
    """sha256 (hex) of arrays of ids, lengths included."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(document, dtype=np.int64).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- plain text


class TextSplits(NamedTuple):
    train: ScoredDocuments
    val: ScoredDocuments


def is_store(path: Path) -> bool:
    return (path / "store.json").is_file()


def is_text(path: Path) -> bool:
    """Whether DATA is plain text: a token store, a .txt or .md file, a document such as a PDF, or a
    folder of those.

    Raises SourceError for a folder that holds examples too.
    """
    if is_store(path):
        return True
    if not path.is_dir():
        return find_suffix(path) in PLAIN_SUFFIXES
    names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    texts = [name for name in names if find_suffix(Path(name)) in PLAIN_SUFFIXES]
    examples = [name for name in names if find_suffix(Path(name)) in ROW_READERS]
    if texts and examples:
        raise SourceError(
            f"cannot fine-tune on {path}: it holds both texts ({texts[0]}) and examples ({examples[0]}); expected one "
            "kind; move the others away"
        )
    return bool(texts)


def open_texts(
    data: Path,
    val: Path | None,
    fraction: float | None,
    tokenizer: Tokenizer,
    eos_id: int,
    conversions: Conversions | None = None,
    *,
    half_width: bool = False,
) -> TextSplits:
    """Tokenized documents of plain text; a token store keeps its own split.

    Raises SourceError, StoreError, ConfigError, and TrainingError if there is nothing to train on.
    """
    if is_store(data):
        if val is not None or fraction is not None:
            raise ConfigError(
                f"finetune: {data} is a token store with its own held-out documents; remove --val and --val-fraction"
            )
        if half_width:
            raise ConfigError(f"finetune: --half-width: {data} is a token store, whose text is encoded; leave it out")
        store = TokenStore(data)
        if store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise StoreError(
                f"cannot fine-tune on {data}: its tokenizer is not the checkpoint's; build the store again: llamita "
                "prepare SOURCE --tokenizer CHECKPOINT"
            )
        splits = TextSplits(store.split("train"), store.split("val"))
    else:
        texts = read_texts(data, conversions, half_width=half_width)
        if val is not None:
            sides = texts, read_texts(val, conversions, half_width=half_width)
        else:
            sides = _by_side(texts, hold_out(texts, fraction, None).tolist())
        splits = TextSplits(*(EncodedTexts(side, tokenizer.encode_batch, eos_id) for side in sides))
    if splits.train.num_documents == 0:
        raise TrainingError(f"cannot fine-tune on {data}: no text to train on; add more")
    return splits


def read_texts(path: Path, conversions: Conversions | None = None, *, half_width: bool = False) -> list[str]:
    """The documents of a text file or of a folder of text files. Raises SourceError."""
    texts = [document.text for document in read_documents([str(path)], conversions=conversions)]
    if half_width:
        texts = [to_half_width(text) for text in texts]
    if not texts:
        unread = conversions.document_files.describe_unread() if conversions else []
        raise SourceError(f"cannot use {path}: {unread[0] if unread else 'it has no text'}")
    return texts


def open_general_text(path: Path, tokenizer: Tokenizer, eos_id: int) -> EncodedTexts:
    """The beginnings of the first documents of a text, a folder or a token store (of any
    tokenizer): GENERAL_TOKENS, or a few more. Raises SourceError, StoreError."""
    whole = _store_texts(path) if is_store(path) else read_texts(path)
    texts = [text[:GENERAL_CHARACTERS] for text in whole]
    count, num_tokens = 0, 0
    while count < len(texts) and num_tokens < GENERAL_TOKENS:
        num_tokens += len(tokenizer.encode(texts[count])) + 1
        count += 1
    return EncodedTexts(texts[:count], tokenizer.encode_batch, eos_id)


def _store_texts(path: Path) -> list[str]:
    """The first held-out documents of a store as text, else its first training documents."""
    store, tokenizer = TokenStore(path), load_tokenizer(path)
    split = store.split("val") if store.split("val").num_documents else store.split("train")
    first = range(min(split.num_documents, GENERAL_TOKENS))  # each has at least one token
    texts = [tokenizer.decode(split.document(i)[:-1].tolist()).decode("utf-8", "replace") for i in first]
    if not texts:
        raise SourceError(f"cannot use {path} as general text: it is empty")
    return texts
