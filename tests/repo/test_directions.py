"""Holds the import directions of the design: Python by its syntax trees, C by its #include lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "llamita"
ENGINE = ROOT / "engine"

# Low to high: a module may import its own level and those below. The longest matching prefix counts.
LEVELS = {
    "errors": 0,
    "atomic": 1,
    "user_cache": 1,
    "config": 1,
    "chat_template": 2,
    "chat_template_worker": 2,
    "tokenizer": 2,
    "data.shards": 2,
    "formats.tensor_table": 2,
    "formats.rope_order": 2,
    "formats.quantize": 4,  # the engine quantizes
    "formats.huggingface": 2,
    "formats": 2,  # the package's own __init__, which imports nothing
    "data": 3,
    "data.encoding": 4,  # the engine encodes
    "data.engine_encoding": 4,
    "data.prepare": 4,
    "data.vocabulary": 4,  # the engine learns
    "engine": 3,
    "engine_library": 2,
    "model": 3,
    "checkpoint": 3,
    "chat": 4,
    "telling": 4,
    "sample_report": 4,
    "training": 4,
    "formats.gguf": 4,
    "formats.gguf_metadata": 4,
    "formats.llama2c": 4,
    "formats.inspect": 4,
    "formats.export": 4,
    "formats.importing": 4,
    "formats.meta": 4,
    "formats.source_gguf": 4,
    "formats.source_huggingface": 4,
    "formats.source_llama2c": 4,
    "formats.type_choice": 4,
    "formats.requantize": 4,
    "formats.verify": 4,
    "finetune": 5,
    "cli": 6,
    "table": 0,
}
ENVIRONMENT_READERS = ("cli", "training.distributed", "user_cache")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level(module: str) -> int:
    prefix = module
    while prefix and prefix not in LEVELS:
        prefix = prefix.rpartition(".")[0]
    assert prefix, f"{module} has no level: add it to LEVELS, and to the design if it is a new kind of thing"
    return LEVELS[prefix]


def imported_modules(path: Path) -> set[str]:
    """Every module that the file imports anywhere, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def is_module(dotted: str) -> bool:
    path = PACKAGE / Path(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports(path: Path) -> set[str]:
    stripped = {name.removeprefix("llamita.") for name in imported_modules(path) if name.startswith("llamita.")}
    return {name for name in stripped if is_module(name)}


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if module_name(p) not in ("", "__main__")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_python_directions(path: Path) -> None:
    importer = module_name(path)
    for imported in own_imports(path):
        assert level(imported) <= level(importer), f"{importer} must not import {imported}: it stands above"
        area, other = importer.split(".")[0], imported.split(".")[0]
        assert other != "cli" or area == "cli", f"{importer} imports cli: nothing does"
        if {area, other} == {"training", "formats"}:
            raise AssertionError(f"{importer} imports {imported}: training and formats do not know each other")
        if area == "model":
            assert other not in ("training", "formats"), f"{importer} imports {imported}: the network knows neither"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_stays_out(path: Path) -> None:
    importer = module_name(path)
    area = importer.split(".")[0]
    if area in (
        "errors",
        "config",
        "atomic",
        "engine",
        "engine_library",
        "tokenizer",
        "server",
        "chat",
        "chat_template",
    ) or importer in (
        "formats.tensor_table",
        "formats.quantize",
        "formats.rope_order",
        "formats.huggingface",
        "data.shards",
        "data.batches",
        "data.datatrove",
        "data.mixture",
        "data.prepare",
        "data.sources",
        "data.tales",
        "data.tinystories",
    ):
        assert not any(name.split(".")[0] == "torch" for name in imported_modules(path)), f"{importer} imports torch"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_environment_is_read_in_few_places(path: Path) -> None:
    if not module_name(path).startswith(ENVIRONMENT_READERS):
        text = path.read_text(encoding="utf-8")
        reads = re.search(
            r'os\.environ(?!\["\w+"\] = )|getenv', text
        )  # setting a variable for a library is not reading
        assert not reads, f"{path}: only {ENVIRONMENT_READERS} read the environment"


def includes(path: Path) -> set[str]:
    return set(re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE))


def sources(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ENGINE / f).rglob("*.[ch]"))


# engine/src: a folder may include its own headers, llamita.h, and those of the folders named here.
C_FOLDERS = {
    "runtime": (),
    "kernels": ("runtime",),
    "tokenizer": ("runtime",),
    "model": ("kernels", "runtime", "tokenizer"),
    "formats": ("kernels", "model", "runtime", "tokenizer"),
    "api": ("formats", "kernels", "model", "runtime", "tokenizer"),
}


def test_program_knows_only_the_public_header() -> None:
    own = {path.name for path in (ENGINE / "app").glob("*.h")}
    assert set().union(*map(includes, sources("app"))) - own == {"llamita.h"}
    assert includes(ENGINE / "reference" / "run.c") == set()


@pytest.mark.parametrize("folder", C_FOLDERS)
def test_c_folders(folder: str) -> None:
    allowed = {folder, *C_FOLDERS[folder]}
    for path in sources(f"src/{folder}"):
        for name in includes(path) - {"llamita.h"}:
            assert name.partition("/")[0] in allowed, f"{path.name} must not include {name}"


def test_c_folders_are_all_named() -> None:
    assert {path.name for path in (ENGINE / "src").iterdir()} == set(C_FOLDERS)


def test_intrinsics_only_in_kernels() -> None:
    for path in sources("src", "app", "reference"):
        text = path.read_text(encoding="utf-8")
        if path.parent.name != "kernels":
            assert not re.search(r"immintrin\.h|arm_neon\.h|_mm\d*_\w+\(|\bv\w+q_[fsu]\d+\(", text), path


def without_comments(text: str) -> str:
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL))


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A path that returns to where it began, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node]):
                if found := walk(other, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_c_headers_include_without_circles() -> None:
    headers = {str(p.relative_to(ENGINE / "src")): includes(p) for p in sources("src") if p.suffix == ".h"}
    assert cycle({name: found & headers.keys() for name, found in headers.items()}) == []


def test_c_files_call_without_circles() -> None:
    paths = [path for path in sources("src") if path.suffix == ".c"]
    texts = {str(p.relative_to(ENGINE / "src")): without_comments(p.read_text(encoding="utf-8")) for p in paths}
    defines = re.compile(r"^(static |INLINE )?(?=\w)[\w *]*?\b(\w+)\([^;{}]*?\)\s*\{", re.MULTILINE)
    functions = {name: defines.findall(text) for name, text in texts.items()}
    public = {name: {function for private, function in found if not private} for name, found in functions.items()}
    own = {name: {function for _, function in found} for name, found in functions.items()}
    words = {name: set(re.findall(r"(?<![\w.>])\w+", text)) - own[name] for name, text in texts.items()}
    calls = {name: {other for other in texts if public[other] & words[name]} for name in texts}
    assert cycle(calls) == []


def test_library_neither_prints_nor_exits() -> None:
    for path in sources("src"):
        text = without_comments(path.read_text(encoding="utf-8"))
        found = re.search(r"\b(printf|fprintf|puts|putchar|perror|exit|_Exit|abort|getenv|system|execv\w*)\s*\(", text)
        assert not found, f"{path.name}: {found.group(0) if found else ''}"


def test_reference_stays_one_page() -> None:
    assert len((ENGINE / "reference" / "run.c").read_text(encoding="utf-8").splitlines()) <= 500
