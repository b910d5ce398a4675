"""The reference page against what is known of trained models, and the engine against the reference page."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import llamita

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "engine" / "reference" / "run.c"
MODELS = {
    "stories260K": ("stories260K.bin", "tok512.bin"),
    "babyllama105": ("model5000.bin", "tok105.bin"),
}
PROMPTS = ["", "Once upon a time", "The dog said:", "Lily  and\nTom", "x"]

# Gives the page a door for tests: n ids in, logits [n, V] out.
DOOR = f"""
#define main page_main
#include "{PAGE}"
#undef main
void page_logits(const char *path, const int *ids, int n, float *logits) {{
    const model m = open_model(path);
    session s = open_session(&m);
    for (int i = 0; i < n; i++) {{
        forward(&m, &s, ids[i], i);
        memcpy(logits + (size_t)i * (size_t)m.vocab_size, s.logits, (size_t)m.vocab_size * sizeof(float));
    }}
}}
int page_encode(const char *path, int vocab_size, const char *text, int *ids) {{
    const tokenizer t = open_tokenizer(path, vocab_size);
    return encode(&t, text, ids);
}}
"""


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, shared_data: Path) -> tuple[str, Path, Path]:
    """Name, model and tokenizer of a real llama2.c model."""
    folder = shared_data / "models" / request.param
    model, tokenizer = MODELS[request.param]
    return request.param, folder / model, folder / tokenizer


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert found, "a C compiler is needed"
    return found


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page compiled alone, as its first lines say, without a warning."""
    program = tmp_path_factory.mktemp("page") / "run"
    done = subprocess.run(
        [compiler(), "-O3", "-Wall", "-Wextra", "-Werror", PAGE, "-o", program, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


@pytest.fixture(scope="session")
def page_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("door")
    (folder / "door.c").write_text(DOOR)
    library = folder / "door.so"
    subprocess.run([compiler(), "-O1", "-shared", "-fPIC", folder / "door.c", "-o", library, "-lm"], check=True)
    return ctypes.CDLL(str(library))


def output_of(program: Path, *words: object) -> bytes:
    done = subprocess.run([program, *map(str, words)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_is_a_page() -> None:
    lines = PAGE.read_text().splitlines()
    assert len(lines) <= 500 and max(map(len, lines)) <= 120
    assert not re.search(r'#include "', "\n".join(lines))


def test_compiled_for_speed_it_generates_the_same(page: Path, shared_data: Path, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    flags = ["-Ofast", "-march=native", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler(), *flags, PAGE, "-o", fast, "-lm"], check=True)
    folder = shared_data / "models" / "stories260K"
    words = [folder / "stories260K.bin", "-z", folder / "tok512.bin", "-t", "0", "-n", "20"]
    assert output_of(fast, *words) == output_of(page, *words)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_known_bytes(page: Path, engine_build: Path, shared_data: Path, threads: int) -> None:
    expected = (shared_data / "reference" / "stories260K_t0_n200.expected.txt").read_bytes() + b"\n"
    folder = shared_data / "models" / "stories260K"
    words = [folder / "stories260K.bin", "-z", folder / "tok512.bin", "-t", 0, "-n", 200]
    assert output_of(page, *words) == expected
    for kernels in ("auto", "scalar"):
        assert output_of(engine_build / "run", *words, "-j", threads, "--kernels", kernels) == expected


def test_the_known_ids(engine_build: Path, shared_data: Path, trained: tuple[str, Path, Path]) -> None:
    name, path, tokenizer = trained
    known = json.loads((shared_data / "reference" / "greedy_ids.json").read_text())
    expected = known[f"{name}_256"]
    with llamita.load(path, tokenizer=tokenizer) as model:
        generation = model.generate(temperature=0, max_new_tokens=len(expected))
        text = "".join(generation)
        assert generation.prompt_ids == [1]
        assert generation.ids == expected
        assert text.strip() == known["text"][f"{name}_256"].strip()
        if f"{name}_200" in known:
            assert expected[:200] == known[f"{name}_200"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_page_and_engine_generate_the_same(
    page: Path, engine_build: Path, trained: tuple[str, Path, Path], prompt: str
) -> None:
    _, path, tokenizer = trained
    with llamita.load(path, tokenizer=tokenizer) as model:
        prompt_ids = model.encode(prompt, bos=True)
        echo = model.decode(prompt_ids)
    words = [path, "-z", tokenizer, "-t", 0, "-i", prompt]
    new_tokens = 120  # llama2.c's -n, and so the page's, counts positions: one less than prompt and new tokens together
    of_page = output_of(page, *words, "-n", len(prompt_ids) + new_tokens - 1)
    of_engine = output_of(engine_build / "run", *words, "-n", new_tokens)
    assert of_engine.startswith(prompt.encode()), "the program prints a prompt as it was typed"
    of_engine = echo + of_engine[len(prompt.encode()) :]
    assert of_engine.replace(" ⁇ ".encode(), b"<unk>") == of_page  # the page prints the unknown piece as it is written


def test_logits_agree(engine_build: Path, page_library: ctypes.CDLL, trained: tuple[str, Path, Path]) -> None:
    _, path, tokenizer = trained
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    with llamita.load(path, tokenizer=tokenizer) as model:
        ids = np.array(model.encode(text, bos=True), dtype=np.int32)
        page_logits = np.empty((len(ids), model.info.vocab_size), dtype=np.float32)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (ids, page_logits)]
        page_library.page_logits(str(path).encode(), pointers[0], len(ids), pointers[1])
        np.testing.assert_allclose(model.logits(ids, kv_type="f32"), page_logits, atol=1e-4)


def test_page_and_engine_read_text_alike(
    engine_build: Path, page_library: ctypes.CDLL, shared_data: Path, trained: tuple[str, Path, Path]
) -> None:
    name, path, tokenizer = trained
    stories = (shared_data / "tinystories" / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:40]
    texts = [*stories, "日本語 🦙 naïve", " two  spaces ", "\t\n", "<s> </s> <0x41> <unk>"]
    if name == "babyllama105":  # its tokenizer knows neither all bytes nor all characters
        known = set("".join(stories[:1])) & set("abcdefghijklmnopqrstuvwxyz ,.")
        texts = ["".join(c for c in story if c in known) for story in stories]
    with llamita.load(path, tokenizer=tokenizer) as model:
        for text in texts:
            raw = text.encode()
            ids = np.empty(len(raw) + 2, dtype=np.int32)
            num_ids = page_library.page_encode(
                str(tokenizer).encode(), model.info.vocab_size, raw, ids.ctypes.data_as(ctypes.c_void_p)
            )
            assert ids[:num_ids].tolist() == model.encode(text, bos=True), text


def test_every_byte_comes_through_the_page(page: Path, shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K"
    words = [folder / "stories260K.bin", "-z", folder / "tok512.bin", "-t", "0", "-n", "80", "-i"]
    for text in ("日本語の鬱 🦙", bytes([*range(1, 256, 7), 0xFF, 0xC3]).decode("utf-8", "surrogateescape")):
        done = subprocess.run([page, *words, text], capture_output=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(text.encode("utf-8", "surrogateescape"))


def test_the_page_reads_long_prompts_in_no_time(page_library: ctypes.CDLL, shared_data: Path) -> None:
    tokenizer = shared_data / "models" / "stories260K" / "tok512.bin"
    raw = (shared_data / "tinystories" / "valid.txt").read_bytes()[:1_000_000]
    ids = np.empty(len(raw) + 2, dtype=np.int32)
    num_ids = page_library.page_encode(str(tokenizer).encode(), 512, raw, ids.ctypes.data_as(ctypes.c_void_p))
    assert 200_000 < num_ids < 600_000  # a second or so; merging pair by pair over the whole text would take hours


@pytest.mark.parametrize("flag", ["-t 1", "-p 0", "-p 1", "-p 1e-9", "-t 1e-30", "-t 1000"])
def test_the_page_samples_by_seed(page: Path, tiny_models, flag: str) -> None:
    tiny = tiny_models.random()
    words = [tiny.path, "-z", tiny.tokenizer, "-n", "32", *flag.split()]
    texts = [output_of(page, *words, "-s", seed) for seed in (7, 7, 8)]
    assert texts[0] == texts[1]
    if flag in ("-t 1", "-p 0", "-p 1", "-t 1000"):
        assert texts[1] != texts[2]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["M", "-t"],
        ["M", "-q", "1"],
        ["M", "-t", "hot"],
        ["M", "-t", "nan"],
        ["M", "-p", "2"],
        ["M", "-n", "-5"],
        ["M", "-n", "1.5"],
        ["M", "-s", "99999999999"],
        ["M", "-i", "a" * 40],
        ["M", "-z", "/nowhere"],
        ["M", "-z", "M"],
        ["/nowhere"],
        ["/"],
    ],
)
def test_the_page_refuses(page: Path, tiny_models, words: list[str]) -> None:
    tiny = tiny_models.random()
    words = [str(tiny.path) if word == "M" else word for word in words]
    if len(words) > 1 and "-z" not in words:
        words = [words[0], "-z", str(tiny.tokenizer), *words[1:]]
    assert_refused(page, *words)


def assert_refused(page: Path, *words: object) -> None:
    done = subprocess.run([page, *map(str, words)], capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stdout == b"" and re.fullmatch(rb"run: [^\n]+\n", done.stderr), done


def test_the_page_refuses_damaged_files(page: Path, tiny_models, tmp_path: Path) -> None:
    tiny = tiny_models.random()
    whole, bad = tiny.path.read_bytes(), tmp_path / "bad.bin"
    contents = [whole[:n] for n in (0, 1, 27, 28, 29, len(whole) - 1)] + [whole + b"\0", b"GGUF" + whole[4:]]
    contents += [b"24ka\2\0\0\0" + whole[8:]]
    for field in range(7):
        for value in (0, -1, 3, 5, 2**31 - 1, -(2**31)):
            contents.append(whole[: 4 * field] + value.to_bytes(4, "little", signed=True) + whole[4 * field + 4 :])
    for content in contents:
        bad.write_bytes(content)
        assert_refused(page, bad, "-z", tiny.tokenizer)
    whole = tiny.tokenizer.read_bytes()
    lengths = [whole[:8] + n.to_bytes(4, "little", signed=True) + whole[12:] for n in (-1, 2**31 - 1, 100)]
    for content in [b"", whole[:3], whole[:4], whole[:-1], whole + whole[4:], *lengths]:
        bad.write_bytes(content)
        assert_refused(page, tiny.path, "-z", bad)


def test_the_page_refuses_weights_that_are_not_numbers(page: Path, tiny_models) -> None:
    tiny = tiny_models.random(5)
    tensors = {**tiny.tensors, "down": np.full_like(tiny.tensors["down"], np.nan)}
    broken = tiny_models.write("page_nan", tiny.shape, tensors, tied=True)
    for temperature in ("0", "1"):
        assert_refused(page, broken.path, "-z", broken.tokenizer, "-t", temperature)
