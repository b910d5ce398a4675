"""The engine in WebAssembly, as js/llamita.js runs it in node: the bytes of the native engine, clear errors, small."""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.engine import Model
from llamita.engine.model import PACKAGED_MODEL

pytestmark = pytest.mark.cross

ROOT = Path(__file__).resolve().parents[2]
MAX_COMPRESSED_BYTES = 150_000
MODULES = ("llamita.wasm", "llamita-relaxed.wasm")
C_TESTS = ("test_kernels", "test_forward", "test_identity")
TYPES = ("q8_0", "q4_0", "f32", "f16", "bf16", "q4_1", "q5_1", "q4_k_m", "q6_k")


@functools.cache
def build_module() -> Any:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("zig is not installed (pip install ziglang)")
    if shutil.which("node") is None:
        pytest.skip("node is not on PATH (Debian: nodejs)")
    spec = importlib.util.spec_from_file_location("build_wasm", ROOT / "js" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def engine(name: str) -> Path:
    """One of the two modules, up to date. js/ has both."""
    return {module: build_module().build_module(module) for module in MODULES}[name]


def run_cases(*cases: dict[str, Any], flags: tuple[str, ...] = ()) -> list[Any]:
    engine(MODULES[0])
    done = subprocess.run(
        ["node", "--no-warnings", *flags, str(ROOT / "tests" / "parity" / "browser_engine.mjs")],
        input=json.dumps(cases).encode(),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    results: list[Any] = json.loads(done.stdout)
    return results


def skip_unless_right(name: str) -> None:
    """Relaxed dot products are wrong in Node 20; llamita.js does not choose them there."""
    if "relaxed" in name and run_cases({"action": "engineFile"}) != [name]:
        pytest.skip("this node has no relaxed SIMD (22 has)")


def native_texts(engine_build: Path, words: list[str], prompts: list[tuple[str, dict[str, Any]]]) -> list[str]:
    texts = []
    for prompt, options in prompts:
        settings = ["-i", prompt, "-s", str(options["seed"]), "-n", str(options["maxNewTokens"])]
        done = subprocess.run([str(engine_build / "run"), *words, *settings], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode("utf-8", "replace")
        assert text.startswith(prompt) and text.endswith("\n")
        texts.append(text[len(prompt) : -1])
    return texts


@pytest.mark.parametrize("name", MODULES)
def test_small_and_without_imports(name: str) -> None:
    """But for the clock."""
    assert len(gzip.compress(engine(name).read_bytes(), 9)) <= MAX_COMPRESSED_BYTES
    if "relaxed" not in name:
        (imports,) = run_cases({"action": "imports", "engine": str(engine(name))})
        assert imports == [{"module": "llamita", "name": "seconds", "kind": "function"}]


@pytest.mark.parametrize("name", MODULES)
def test_c_tests(name: str, tmp_path: Path) -> None:
    """The kernels against the scalar ones, and random ways of computing logits against one another."""
    skip_unless_right(name)
    folder = build_module().build(name, *C_TESTS)
    host = str(ROOT / "tests" / "parity" / "wasi_host.mjs")
    for test in C_TESTS:
        words = ["node", "--no-warnings", host, str(tmp_path), str(folder / test)]
        done = subprocess.run(words, capture_output=True, timeout=300)
        assert done.returncode == 0, (test, (done.stdout + done.stderr)[-2000:])
        assert b"expected" not in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("name", MODULES)
def test_the_packaged_model_gives_the_same_text(name: str, text_cases: list[Any]) -> None:
    """100 prompts, each with four seeds."""
    skip_unless_right(name)
    prompts = [
        (case.prompt, {"seed": case.seed, "temperature": case.temperature, "maxNewTokens": 24}) for case in text_cases
    ]
    case = {"action": "generate", "model": str(PACKAGED_MODEL), "engine": str(engine(name)), "prompts": prompts}
    (found,) = run_cases(case)
    assert found["info"]["kernels"] == ("relaxed" if "relaxed" in name else "simd128")
    for case, pieces in zip(text_cases, found["texts"], strict=True):
        assert f"{case.prompt}{''.join(pieces)}\n" == case.output.decode("utf-8", "replace"), case


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="every other processor has fma")
def test_processors_without_fma(engine_build: Path) -> None:
    """They take the plain module; the relaxed one would compute with the scalar kernels, which give the same bits."""
    skip_unless_right(MODULES[1])
    prompts = [("Once upon a time", {"seed": 3, "maxNewTokens": 12})]
    case = {"action": "generate", "model": str(PACKAGED_MODEL), "engine": str(engine(MODULES[1])), "prompts": prompts}
    chosen, found = run_cases({"action": "engineFile"}, case, flags=("--no-enable-fma3",))
    assert chosen == MODULES[0] and found["info"]["kernels"] == "scalar"
    assert ["".join(pieces) for pieces in found["texts"]] == native_texts(engine_build, [str(PACKAGED_MODEL)], prompts)


@pytest.mark.parametrize("type", TYPES)
def test_every_type(type: str, make_checkpoint: Callable[..., Path], tmp_path: Path, engine_build: Path) -> None:
    """The bits of the logits, and the text."""
    from llamita.convert.export import export

    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    model = tmp_path / "model.gguf"
    export(make_checkpoint(tmp_path / "checkpoint", **sizes), model, type, verify=False)
    prompts = [("the llama", {"seed": seed, "maxNewTokens": 20}) for seed in range(3)]
    generated, *logits = run_cases(
        {"action": "generate", "model": str(model), "prompts": prompts},
        *({"action": "logits", "model": str(model), "prompt": list(range(3, 40)), "options": {"kvType": kv}}
          for kv in ("f16", "q8", "f32")),
    )  # fmt: skip
    assert ["".join(pieces) for pieces in generated["texts"]] == native_texts(engine_build, [str(model)], prompts)
    expected = [Model(model).logits(list(range(3, 40)), kv_type=kv)[-1] for kv in ("f16", "q8", "f32")]
    for one, other in zip(logits, expected, strict=True):
        assert base64.b64decode(one) == np.asarray(other, dtype="<f4").tobytes()


def test_llama2c_files(tiny_models: Any, shared_data: Path, engine_build: Path) -> None:
    """A model without a tokenizer takes one."""
    stories = shared_data / "models" / "stories260K"
    tiny = tiny_models.random(7)
    for model, tokenizer in ((stories / "stories260K.bin", stories / "tok512.bin"), (tiny.path, tiny.tokenizer)):
        prompts = [("the tale", {"seed": seed, "maxNewTokens": 20}) for seed in range(4)]
        case = {"action": "generate", "model": str(model), "options": {"tokenizer": str(tokenizer)}}
        (found,) = run_cases({**case, "prompts": prompts})
        texts = ["".join(pieces) for pieces in found["texts"]]
        assert texts == native_texts(engine_build, [str(model), "-z", str(tokenizer)], prompts)


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "zephyr"])
def test_chat(template: str, make_chat_model: Callable[..., Any], engine_build: Path) -> None:
    """The first answer; the second has a sampler of its own here."""
    path = make_chat_model(template).path
    questions = ["你好", "hello"]
    case = {"action": "chat", "model": str(path), "questions": questions}
    (answers,) = run_cases({**case, "generation": {"seed": 1, "maxNewTokens": 12}})
    words = [str(engine_build / "run"), str(path), "-m", "chat", "-s", "1", "-n", "12"]
    first = subprocess.run(words, input=questions[0].encode(), capture_output=True, timeout=60)
    assert answers[0] == first.stdout.decode("utf-8", "replace").removesuffix("\n")
    assert len(answers) == 2


def test_tokens_and_text(random_texts: list[str]) -> None:
    texts = ["", "Once", *random_texts[:300]]
    (found,) = run_cases({"action": "text", "model": str(PACKAGED_MODEL), "texts": texts})
    with Model(PACKAGED_MODEL) as model:
        for text, (ids, back) in zip(texts, found, strict=True):
            assert ids == list(model.encode(text)) and back == text


def test_pieces_are_whole_characters(tiny_models: Any) -> None:
    text = "日🦙é"
    ids = [tiny_models.byte_id(byte) for byte in text.encode()]
    endless = tiny_models.successor("endless", dict(pairwise([1, *ids, ids[0]])), context=64)
    options = {"temperature": 0, "maxNewTokens": 2 * len(ids)}
    case = {"action": "generate", "model": str(endless.path), "options": {"tokenizer": str(endless.tokenizer)}}
    cut, stopped, whole = options | {"maxNewTokens": 5}, options | {"stop": ["é日"]}, options | {"stop": "é!"}
    (found,) = run_cases({**case, "prompts": [["", options], ["", cut], ["", stopped], ["", whole]]})
    assert found["texts"][0] == [*text, *text]
    assert "".join(found["texts"][1]) == text[0]  # the start of the next character is dropped
    assert "".join(found["texts"][2]) == text[:2]  # what may begin a stop text is held back
    assert "".join(found["texts"][3]) == 2 * text


def test_side_by_side_abort_and_sources() -> None:
    prompts = [("Once upon a time", {"seed": 3, "maxNewTokens": 30}), ("The dog", {"seed": 4, "maxNewTokens": 25})]
    model = {"model": str(PACKAGED_MODEL), "prompts": prompts}
    together, aborted, sources = run_cases(
        {"action": "side_by_side", **model}, {"action": "abort", **model}, {"action": "sources", **model}
    )
    assert together["texts"] == together["expected"] and len(set(together["texts"])) == 2
    assert aborted == {"count": 3, "name": "AbortError", "timedName": "AbortError", "same": True}
    assert len(sources["texts"]) == 6 and set(sources["texts"]) == {together["texts"][0]}
    assert sources["loaded"] == sources["size"] == PACKAGED_MODEL.stat().st_size


def test_errors_are_one_line(tmp_path: Path) -> None:
    model = str(PACKAGED_MODEL)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(range(256)) * 8)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "no/such.gguf"}, "cannot open model no/such.gguf: no such file"),
        ({"model": str(garbage)}, "cannot open model garbage.gguf: "),
        ({"make": "truncated", "model": model, "bytes": 100_000}, "cannot open model (in memory): "),
        ({"make": "truncated", "model": model, "bytes": 0}, "cannot open model (in memory): the file is empty"),
        ({"make": "huge", "model": model}, "cannot open model (in memory): expected at most 1879048192 bytes"),
        ({"model": 5}, "cannot open model: expected a URL, File, Blob, ArrayBuffer or typed array, found number"),
        ({"model": model, "options": {"kernels": "avx2"}}, "cannot open model stories.gguf: kernels: "),
        ({"model": model, "options": {"kvType": "q4"}}, "kvType: expected f16, f32 or q8, found q4"),
        ({"model": model, "options": {"contextTokens": 10**6}}, "cannot open a session: context_tokens: "),
        ({"model": model, "close": True, "call": "tokenize", "args": ["x"]}, "the model is closed"),
        ({"model": model, "call": "generate", "args": ["x " * 999]}, "the prompt: expected at most 512 tokens"),
        ({"model": model, "call": "generate", "args": ["x", {"seed": -1}]}, "seed: expected a number from 0 to "),
        ({"model": model, "call": "generate", "args": ["x", {"topP": 2}]}, "topP: expected a number from 0 to 1, "),
        ({"model": model, "call": "generate", "args": ["x", {"top_p": 1}]}, "unknown option top_p; expected "),
        ({"model": model, "call": "generate", "args": [[4096]]}, "token id: expected a whole number from 0 to 4095, "),
        ({"model": model, "call": "generate", "args": [[]]}, "the prompt: expected at least one id, found none"),
        ({"model": model, "call": "chat", "args": [[{"role": "user", "content": "x"}]]}, "cannot "),
        ({"model": model, "call": "chat", "args": [[]]}, "messages: expected a list of {role, content}, found "),
        ({"model": model, "call": "detokenize", "args": [[-1]]}, "token id: expected a whole number "),
    ]
    results = run_cases(*({"action": "error"} | case for case, _ in cases))
    for (case, expected), result in zip(cases, results, strict=True):
        assert result and result["isError"], (case, result)
        assert result["message"].startswith(expected), (result["message"], expected)
        assert "\n" not in result["message"] and len(result["message"]) < 512


@pytest.mark.skipif(sys.platform == "win32", reason="npm is a script there")
def test_the_package_is_complete(tmp_path: Path) -> None:
    """What npm would publish has all that it names, and nothing else."""
    engine(MODULES[0])
    package = json.loads((ROOT / "js" / "package.json").read_text())
    from llamita import __version__

    assert package["version"] == __version__
    assert set(MODULES) < set(package["files"])
    for name in package["files"]:
        assert (ROOT / "js" / name).is_file()
