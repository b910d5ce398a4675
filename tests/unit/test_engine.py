"""The binding, on tiny models: its numbers against a forward pass in numpy, its text, its errors,
its lifetimes."""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamita
from llamita import engine
from llamita.chat import Chat
from llamita.engine import Model, Sampler
from llamita.engine import library as engine_library
from llamita.engine import model as engine_model
from llamita.engine.library import library_path
from llamita.engine.sampler import sampler_struct
from llamita.errors import EngineError
from llamita.sampling import RuntimeOptions, SamplingParams

pytestmark = pytest.mark.usefixtures("engine_build")


def forward(tiny, ids: list[int]) -> np.ndarray:
    """float64 [n, V]: a Llama in llama2.c's layout, all positions at once, written as plainly as
    numpy allows."""
    w, shape, n = tiny.tensors, tiny.shape, len(ids)
    heads, size = shape["heads"], shape["hidden"] // shape["heads"]
    group = heads // shape["kv_heads"]

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def rotate(x):  # [n, heads, size], adjacent pairs
        angle = np.arange(n)[:, None, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        a, b = x[..., 0::2], x[..., 1::2]
        pairs = [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
        return np.stack(pairs, -1).reshape(x.shape)

    residual = w["embedding"].astype(np.float32).astype(np.float64)[ids]
    for i in range(shape["layers"]):
        normed = norm(residual, w["attention_norm"][i])
        query = rotate((normed @ w["query"][i].T).reshape(n, heads, size))
        key = rotate((normed @ w["key"][i].T).reshape(n, -1, size)).repeat(group, 1)
        value = (normed @ w["value"][i].T).reshape(n, -1, size).repeat(group, 1)
        scores = np.einsum("ths,uhs->htu", query, key) / np.sqrt(size)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        residual = residual + np.einsum("htu,uhs->ths", weights, value).reshape(n, -1) @ w["attention_output"][i].T
        normed = norm(residual, w["ffn_norm"][i])
        gate = normed @ w["gate"][i].T
        residual = residual + (gate / (1 + np.exp(-gate)) * (normed @ w["up"][i].T)) @ w["down"][i].T
    return norm(residual, w["output_norm"]) @ w["output"].T


IDS = [1, 259, 270, 100, 7, 3, 288, 261]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_numpy(tiny_models, tied: bool, kv_heads: int) -> None:
    tiny = tiny_models.random(kv_heads, tied=tied, kv_heads=kv_heads)
    with llamita.load(tiny.path) as model:
        logits = model.logits(IDS)
        assert logits.dtype == np.float32 and logits.shape == (len(IDS), tiny_models.VOCAB_SIZE)
        np.testing.assert_allclose(model.logits(IDS, kv_type="f32"), forward(tiny, IDS), atol=2e-4)
        np.testing.assert_allclose(logits, forward(tiny, IDS), atol=0.02)  # keys and values as 16-bit floats
        with model.session(num_threads=2) as session:
            assert session.logits is None
            for token_id in IDS:
                session.feed([token_id])
            assert session.position == len(IDS)
            assert session.num_threads == 2
            np.testing.assert_array_equal(session.logits, logits[-1])  # bit-identical, however it was fed
            session.rewind(3)
            assert session.logits is None
            np.testing.assert_array_equal(session.feed_logits(np.array(IDS[3:])), logits[3:])


def test_score_is_the_negative_log_probability(tiny_models) -> None:
    with llamita.load(tiny_models.random().path) as model:
        logits = model.logits(IDS).astype(np.float64)
        log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = [-log_probability[i, after] for i, after in enumerate(IDS[1:])]
        np.testing.assert_allclose(model.score(IDS), expected, atol=1e-5)
        with model.session() as session:  # rows can follow one another
            np.testing.assert_allclose([*session.score(IDS[:5]), *session.score(IDS[4:])], expected, atol=1e-5)


def test_info(tiny_models) -> None:
    tiny = tiny_models.random()
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer, kernels="scalar") as model:
        info = model.info
        assert (info.hidden_size, info.intermediate_size, info.num_hidden_layers) == (16, 24, 2)
        assert (info.num_attention_heads, info.num_key_value_heads, info.head_dim) == (4, 2, 4)
        assert (info.vocab_size, info.context_tokens) == (tiny_models.VOCAB_SIZE, 32)
        assert info.format.startswith("llama2.c") and info.weight_type == "F32" and info.kernels == "scalar"
        assert info.has_tokenizer and info.tied_embeddings and (info.bos_id, info.eos_id) == (1, 2)
        assert info.num_parameters == sum(v.size for k, v in tiny.tensors.items() if k not in ("output", "rope_tables"))
        assert abs(info.rms_norm_eps - 1e-5) < 1e-9 and info.rope_theta == 10000
        assert model.chat_template is None
        assert model.token_ends(2) and model.token_ends(1) and not model.token_ends(5)
        assert model.token_text(tiny_models.piece_id("the")) == "the"
        assert model.token_text(10**6) is None


def test_text_and_ids(tiny_models) -> None:
    tiny = tiny_models.random()
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        assert model.encode("the") == [tiny_models.piece_id(" the")]
        assert model.encode("the", bos=True) == [1, tiny_models.piece_id(" the")]
        assert model.encode("") == []
        for text in ["the cat", "日本 🦙", " two  spaces ", "line\nline\0nul"]:
            raw = text.encode()
            assert model.decode([1, *model.encode(text)]) == raw
        broken = b"\xff\xe6\x97 ok"
        assert model.decode([1, *model.encode(broken)]) == broken
        assert model.decode([]) == b""


def test_generate_is_greedy_seeded_and_continues_only(tiny_models) -> None:
    tiny = tiny_models.random()
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        generation = model.generate("ab", max_new_tokens=6, temperature=0)
        list(generation)
        ids = generation.prompt_ids
        for _ in range(6):
            ids = [*ids, int(model.logits(ids)[-1].argmax())]
        assert [*generation.prompt_ids, *generation.ids] == ids
        texts = [list(model.generate("ab", max_new_tokens=9, seed=seed, top_k=50, min_p=0.01)) for seed in (7, 7, 8)]
        assert texts[0] == texts[1] != texts[2]


def test_options_as_an_object_or_by_name(tiny_models) -> None:
    tiny = tiny_models.random()
    sampling, runtime = (
        SamplingParams(temperature=2.0, top_k=9, seed=5),
        RuntimeOptions(num_threads=1, context_tokens=16),
    )
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        as_objects = model.generate("ab", sampling, runtime)
        by_name = model.generate("ab", temperature=2.0, top_k=9, seed=5, num_threads=1, context_tokens=16)
        mixed = model.generate("ab", sampling, runtime, seed=6)
        assert list(as_objects) == list(by_name) and as_objects.stop == by_name.stop
        assert mixed.seed == 6 and model.session(runtime, context_tokens=8).context_tokens == 8
        for refused in (model.generate, model.session, functools.partial(Sampler, 4), functools.partial(Chat, model)):
            with pytest.raises(TypeError, match="temprature"):
                refused(temprature=1.0)


def test_pieces_never_split_a_character(tiny_models) -> None:
    byte = tiny_models.byte_id
    chain = [1, byte(0xE6), byte(0x97), byte(0xA5), byte(0xF0), byte(0x9F), byte(0xA6), byte(0x99), byte(0xE6)]
    tiny = tiny_models.successor("characters", dict(pairwise(chain)))
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        generation = model.generate(temperature=0)
        assert list(generation) == ["日", "🦙"] * 4 + ["日"]  # 32 tokens: the last one is left unfinished
        assert generation.stop == "context's end" and len(generation.ids) == 32
        generation = model.generate(temperature=0, max_new_tokens=5)
        assert list(generation) == ["日"] and generation.stop == "number of tokens"


def test_generate_stops_at_the_end_token(tiny_models) -> None:
    a, b = tiny_models.piece_id("a"), tiny_models.piece_id("b")
    tiny = tiny_models.successor("ends", {1: a, a: b, b: 2})
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        generation = model.generate(temperature=0)
        assert list(generation) == ["a", "b"] and generation.stop == "end token"
        assert re.fullmatch(
            r"prompt 1 tokens, [\d.]+ tok/s \| generated 2 tokens, [\d.]+ tok/s, [\d.]+ GB/s \| "
            r"load [\d.]+ ms, first token [\d.]+ ms \| threads \d+",
            generation.speed_line(),
        )


def test_sampler() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    with Sampler(4, temperature=1.0, top_p=1.0, seed=1) as sampler:
        counts = np.bincount([sampler.pick(logits) for _ in range(4000)], minlength=4) / 4000
        np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    with Sampler(4, top_k=2, top_p=1.0, seed=1) as sampler:
        assert {sampler.pick(logits) for _ in range(200)} == {0, 1}
    with Sampler(4, temperature=0, repetition_penalty=5.0) as sampler:
        positive = logits + 10
        assert sampler.pick(positive) == 0
        sampler.accept(0)
        assert sampler.pick(positive) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.logits([]), "token"),
        (lambda m: m.logits([[1, 2]]), "expected a sequence"),
        (lambda m: m.logits([1.5]), "expected a sequence"),
        (lambda m: m.logits([-1]), "expected 0 or more"),
        (lambda m: m.logits([2**40]), "expected 0 or more"),
        (lambda m: m.logits([10**6]), "1000000"),
        (lambda m: m.logits([1] * 33), "32"),
        (lambda m: m.score([1]), "2"),
        (lambda m: m.decode([10**6]), "1000000"),
        (lambda m: m.session(num_threads=-1), "num_threads"),
        (lambda m: m.session(num_threads=2**40), "num_threads"),
        (lambda m: m.session(context_tokens=33), "context"),
        (lambda m: m.session().rewind(1), "0"),
        (lambda m: m.generate("a" * 100), "shorten it"),
        (lambda m: m.generate("a", max_new_tokens=0), "max_new_tokens"),
        (lambda m: m.generate("a", temperature=-1), "temperature"),
        (lambda m: m.generate("a", temperature=float("nan")), "temperature"),
        (lambda m: m.generate("a", top_p=1.5), "top_p"),
        (lambda m: m.generate("a", top_k=-1), "top_k"),
        (lambda m: m.generate("a", min_p=2), "min_p"),
        (lambda m: m.generate("a", repetition_penalty=0), "repetition_penalty"),
        (lambda m: m.generate("a", seed=-1), "seed"),
    ],
)
def test_what_the_engine_refuses(tiny_models, call, words: str) -> None:
    tiny = tiny_models.random()
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model, pytest.raises(EngineError, match=words) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tiny_models, tmp_path: Path) -> None:
    tiny = tiny_models.random()
    for path, options in [
        (tmp_path / "missing.gguf", {}),
        (tmp_path, {}),
        (tiny.path, {"tokenizer": tmp_path / "missing.bin"}),
        (tiny.path, {"tokenizer": tiny.path}),
        (tiny.path, {"kernels": "sse9"}),
    ]:
        with pytest.raises(EngineError) as caught:
            llamita.load(path, **options)
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


def test_without_a_tokenizer_only_ids_work(tiny_models) -> None:
    with llamita.load(tiny_models.random().path) as model:
        assert not model.info.has_tokenizer
        assert model.logits([1]).shape == (1, tiny_models.VOCAB_SIZE)
        with pytest.raises(EngineError, match="tokenizer"):
            model.encode("text")
        with pytest.raises(EngineError, match="tokenizer"):
            model.generate("text")


@pytest.mark.parametrize("tensor", ["embedding", "gate", "down", "output_norm"])
def test_weights_that_are_not_numbers(tiny_models, tensor: str) -> None:
    tiny = tiny_models.random(5)
    tensors = {**tiny.tensors, tensor: np.full_like(tiny.tensors[tensor], np.nan)}
    broken = tiny_models.write("nan", tiny.shape, tensors, tied=True)
    with pytest.raises(EngineError, match="finite"):  # when opened, or when the first token is picked
        list(llamita.load(broken.path, tokenizer=broken.tokenizer).generate("a"))


def test_lifetimes(tiny_models) -> None:
    tiny = tiny_models.random()
    model = llamita.load(tiny.path, tokenizer=tiny.tokenizer)
    session = model.session()
    del model
    gc.collect(2)
    session.feed([1, 2, 3])  # the session keeps its model
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.feed([1])

    model = Model(tiny.path, tokenizer=tiny.tokenizer)
    session, generation = model.session(), model.generate("a", seed=1)
    assert next(generation) is not None
    model.close()
    with pytest.raises(EngineError, match="closed"):
        session.feed([1])
    with pytest.raises(EngineError, match="closed"):
        next(generation)
    with pytest.raises(EngineError, match="closed"):
        model.encode("a")


def use_in_child(model: Model, session: Any, just_opened: Any, answers: Any) -> None:
    """Runs in a forked process, at whose end Python closes the model and the session that nobody closed."""
    just_opened.close()
    try:
        session.feed([2])
    except EngineError as error:
        answers.send(str(error))
    session.close()
    answers.send("".join(model.generate("a", max_new_tokens=4, temperature=0, num_threads=2)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_session_in_a_forked_process(tiny_models) -> None:
    """Its threads stayed in the parent: using it is an error there, closing it does not hang, and a new session
    works. The same for a session that the child only drops when it ends."""
    tiny = tiny_models.random()
    model = llamita.load(tiny.path, tokenizer=tiny.tokenizer)
    text = "".join(model.generate("a", max_new_tokens=4, temperature=0))
    session, dropped = model.session(num_threads=3), model.session(num_threads=3)
    session.feed([1])
    dropped.feed([1])
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    just_opened = model.session(num_threads=3)
    child = fork.Process(target=use_in_child, args=(model, session, just_opened, there))
    child.start()
    child.join(60)
    hangs = child.is_alive()
    if hangs:
        child.kill()
    assert not hangs and child.exitcode == 0
    assert "opened before this process was forked" in here.recv()
    assert here.recv() == text
    session.feed([2])  # the parent's goes on
    assert session.position == 2


def test_a_file_that_is_cut_while_the_model_is_open(tiny_models, tmp_path: Path) -> None:
    """In a process of its own, because it would die of SIGBUS if a part of the file were still mapped."""
    tiny = tiny_models.random()
    path = tmp_path / "model.bin"
    path.write_bytes(tiny.path.read_bytes())
    code = """
import os, sys, llamita
model = llamita.load(sys.argv[1], tokenizer=sys.argv[2])
before = list(model.generate("a", max_new_tokens=20, seed=1))
os.truncate(sys.argv[1], 10)
assert list(model.generate("a", max_new_tokens=20, seed=1)) == before
"""
    done = subprocess.run([sys.executable, "-c", code, path, tiny.tokenizer], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_one_call_of_c_generates_the_same_text(tiny_models) -> None:
    """Python's own loop can be left and continued; that of C calls back."""
    tiny = tiny_models.random()
    with Model(tiny.path, tokenizer=tiny.tokenizer) as model, model.session() as session:
        ids: list[int] = []
        text = b""

        @engine_library.PieceCallback
        def receive(_: int, piece: Any) -> bool:
            nonlocal text
            if piece[0].id >= 0 and piece[0].finish != 1:
                ids.append(piece[0].id)
                text += ctypes.string_at(piece[0].text, piece[0].num_bytes)
            return True

        for seed in range(5):
            params = SamplingParams(temperature=1.0, seed=seed)
            generation = model.generate("ab", sampling=params, max_new_tokens=12)
            expected = "".join(generation)
            ids, text = [], b""
            raw, _ = sampler_struct(params)
            engine_library.call("generate_text", session._handle, b"ab", 2, ctypes.byref(raw), 12, receive, None)
            assert ids == generation.ids and text.decode("utf-8", "replace") == expected
        with pytest.raises(EngineError, match="max_new_tokens: expected -1"):
            engine_library.call("generate_text", session._handle, b"ab", 2, ctypes.byref(raw), -2, receive, None)


def test_the_binding_is_the_header() -> None:
    """Every function has its binding, and the fields of llamita_model_info are in the header's
    order and sizes."""
    header = (Path(__file__).resolve().parents[2] / "engine" / "include" / "llamita.h").read_text(encoding="utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    assert re.findall(r"LLAMITA_API [^;(]*?\bllamita_(\w+)\(", header) == list(engine_library.FUNCTIONS)
    for struct, mirror in [
        ("model_info", engine_library.ModelInfoStruct),
        ("model_params", engine_library.ModelParamsStruct),
        ("rope_params", engine_library.RopeParamsStruct),
        ("session_params", engine_library.SessionParamsStruct),
        ("scheduler_params", engine_library.SchedulerParamsStruct),
        ("chunk", engine_library.ChunkStruct),
        ("sampler_params", engine_library.SamplerParamsStruct),
    ]:
        body = re.search(r"typedef struct \{([^}]*)\} llamita_" + struct, header)
        assert body
        fields = []
        for kind, names in re.findall(r"((?:const )?\w+ ?\*?)([^;]+);", body[1]):
            for name, _, size in re.findall(r"(\w+)(\[(\d+)\])?", names):
                fields.append((name, kind.replace(" ", ""), int(size or 0)))
        types: dict[str, object] = {"char": ctypes.c_char, "constchar*": ctypes.c_char_p, "float": ctypes.c_float}
        types |= {
            "bool": ctypes.c_bool,
            "int32_t": ctypes.c_int32,
            "int64_t": ctypes.c_int64,
            "uint64_t": ctypes.c_uint64,
            "size_t": ctypes.c_size_t,
            "constint32_t*": ctypes.POINTER(ctypes.c_int32),
            "constllamita_model*": ctypes.c_void_p,
            "llamita_kv_type": ctypes.c_int,
            "llamita_speculation": ctypes.c_int,
            "llamita_rope_scaling": ctypes.c_int,
            "llamita_rope_params": engine_library.RopeParamsStruct,
            "llamita_context_full": ctypes.c_int,
        }
        expected = [(name, types[kind] * size if size else types[kind]) for name, kind, size in fields]
        assert expected == list(mirror._fields_), struct


def test_sequences_side_by_side(tiny_models) -> None:
    """Whatever runs beside it, a sequence's logits are those it has alone."""
    with llamita.load(tiny_models.random().path) as model:
        expected = model.logits(IDS)
        with model.session(num_sequences=3, num_threads=2) as session:
            np.testing.assert_array_equal(session.decode([(1, IDS[:5], 5), (0, IDS[:1], 0)]), expected[:5])
            session.sequence_share(1, 2, 4)
            assert [session.sequence_position(i) for i in range(3)] == [1, 5, 4]
            together = session.decode([(2, IDS[4:], 4), (1, IDS[5:7], 1), (0, IDS[1:], 1)])
            np.testing.assert_array_equal(together, expected[[4, 5, 6, 7, 6, 7]])
            session.sequence_rewind(2, 3)
            np.testing.assert_array_equal(session.decode([(2, IDS[3:], 5)]), expected[3:])
            with pytest.raises(EngineError, match="sequence 3"):
                session.sequence_position(3)
            with pytest.raises(EngineError, match="each sequence once"):
                session.decode([(1, IDS[:1], 0), (1, IDS[:1], 0)])
            with pytest.raises(EngineError, match="as many as there are ids"):
                session.decode([(1, IDS[:1], 2)])


@pytest.mark.parametrize("kv_type", engine.KV_TYPES)
def test_speculation_changes_nothing(tiny_models, kv_type: str) -> None:
    ids = (IDS * 4)[:32]
    with llamita.load(tiny_models.random().path) as model:
        expected = model.logits(ids, kv_type=kv_type)
        for speculation in engine.SPECULATIONS:
            with model.session(kv_type=kv_type, speculation=speculation) as session:
                for token_id, row in zip(ids, expected, strict=True):
                    session.feed([token_id])
                    np.testing.assert_array_equal(session.logits, row)
        with pytest.raises(EngineError, match="kv_type: expected one of f16, f32, q8, found 'q2'"):
            model.session(kv_type="q2")


def test_a_missing_library_says_what_to_do(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_library, "LIBRARY_NAMES", ("nowhere.so",))
    with pytest.raises(EngineError, match="make engine"):
        library_path()


def test_a_missing_packaged_model_says_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_model, "PACKAGED_MODEL", tmp_path / "stories.gguf")
    with pytest.raises(EngineError, match="name a model file"):
        llamita.load()


def test_embeddings_do_not_depend_on_what_is_beside(tiny_models) -> None:
    """Bit-identical alone and together, at any number of threads; hidden states by pieces, too."""
    generator = np.random.default_rng(3)
    tiny = tiny_models.random(context=160)
    with llamita.load(tiny.path, tokenizer=tiny.tokenizer) as model:
        texts = [generator.integers(0, model.info.vocab_size, n).tolist() for n in (1, 70, 3, 64, 128, 9, 65, 2, 7, 30)]
        alone = []
        for ids in texts:
            with model.session(num_threads=1) as session:
                alone.append(engine.embed_ids(session, 1, [ids])[0])
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
        with model.session(num_threads=2, num_sequences=4) as session:
            np.testing.assert_array_equal(engine.embed_ids(session, 4, texts), alone)
            np.testing.assert_array_equal(engine.embed_ids(session, 3, texts[::-1]), alone[::-1])
            with pytest.raises(EngineError, match="cancelled"):
                engine.embed_ids(session, 4, texts, lambda: True)
            assert engine.embed_ids(session, 4, []).shape == (0, model.info.hidden_size)
            session.sequence_rewind(0, 0)
            whole = session.decode_hidden_states([(0, IDS, len(IDS))])
            session.sequence_rewind(0, 3)
            np.testing.assert_array_equal(session.decode_hidden_states([(0, IDS[3:], 2)]), whole[-2:])
            session.sequence_rewind(1, 0)  # states and logits in turns
            np.testing.assert_array_equal(session.decode([(1, IDS, 1)]), model.logits(IDS)[-1:])
        with pytest.raises(EngineError, match="not empty"):
            model.embed(["a", ""])
        with pytest.raises(EngineError, match="context"):
            model.embed(["a b " * 1000])
