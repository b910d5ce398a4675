"""Holds the import directions of the design: Python by its syntax trees, C by its #include lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "llamita"
ENGINE = ROOT / "engine"

# A module imports from its own folder and from the entries above its own; a folder counts as one entry.
LAYERS = (
    "errors", "cores", "file_lock", "atomic", "json_file", "user_cache", "console", "network", "progress", "commands",
    "config", "scaling_law",
    "limited_process", "chat_template_worker", "chat_template",  # Jinja, in a process with limits
    "sampling", "model_card",
    "web",  # sources of pages
    "engine",  # bindings of the C library
    "tokenizer",
    "formats",  # codecs of files: bytes to values and back
    "stories",  # the embedded corpus
    "data",  # text to token stores and batches
    "model",  # the network
    "environment", "checkpoint", "run_directory",  # the two folders that stages meet in
    "batch_generate", "chat",  # text from the engine
    "server",  # the same over HTTP
    "convert",  # import, export, quantize, verify, inspect
    "eval",
    "report",
    "training",
    "finetune",
    "synthesize",  # conversations made of documents
    "cli",
)  # fmt: skip
TORCH_FREE = (
    "errors", "file_lock", "atomic", "json_file", "user_cache", "console", "network", "progress", "config",
    "scaling_law", "limited_process",
    "chat_template_worker", "chat_template", "sampling", "model_card", "web", "engine", "tokenizer", "stories", "data",
    "batch_generate", "chat", "server", "synthesize", "formats.tensor_table", "formats.tensor_types",
    "formats.rope_order", "formats.huggingface", "formats.gguf", "formats.gguf_card",
)  # fmt: skip
ENVIRONMENT_READERS = ("cli", "training.distributed", "training.malloc", "user_cache")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    area = module.split(".")[0]
    assert area in LAYERS, f"{module}: {area} is not in LAYERS; add it, and to docs/architecture.md"
    return LAYERS.index(area)


def imported_modules(path: Path) -> set[str]:
    """Every module that the file imports anywhere, lazily or for type checks too."""
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
        assert layer(imported) <= layer(importer), f"{importer} must not import {imported}: it is in a higher layer"


def test_no_circles() -> None:
    """No module reaches itself through its imports, lazy ones included."""
    graph = {module_name(path): own_imports(path) for path in FILES}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail[trail.index(module) :], module))}"
        if module not in finished:
            for imported in sorted(graph.get(module, ())):
                if imported != module:
                    visit(imported, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_stays_out(path: Path) -> None:
    importer = module_name(path)
    if importer in TORCH_FREE or importer.split(".")[0] in TORCH_FREE:
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
    "platform": (),
    "runtime": ("platform",),
    "kernels": ("platform", "runtime"),
    "tokenizer": ("platform", "runtime"),
    "index": ("platform", "runtime"),
    "model": ("kernels", "platform", "runtime", "tokenizer"),
    "formats": ("kernels", "model", "platform", "runtime", "tokenizer"),
    "api": ("formats", "kernels", "model", "platform", "runtime", "tokenizer"),
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


# ISO C11's headers, and the compilers' own with intrinsics, which kernels includes.
C11_HEADERS = {f"{name}.h" for name in (
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp",
    "signal", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn",
    "string", "tgmath", "threads", "time", "uchar", "wchar", "wctype",
)}  # fmt: skip
INTRINSICS = {"arm_neon.h", "emmintrin.h", "immintrin.h", "wasm_simd128.h"}
SYSTEM_FILES = ("src/platform/", "app/system_")  # one file for each system


def test_system_headers_only_in_the_platform_layer() -> None:
    for path in sources("src", "app"):
        name = path.relative_to(ENGINE).as_posix()
        if name.startswith(SYSTEM_FILES):
            continue
        found = set(re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(encoding="utf-8"), re.MULTILINE))
        allowed = C11_HEADERS | (INTRINSICS if path.parent.name == "kernels" else set())
        assert found <= allowed, f"{name}: {found - allowed}; ask src/platform or app/system.h instead"


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
    other_systems = ("windows.c", "wasm.c")  # they define what posix.c defines
    paths = [path for path in sources("src") if path.suffix == ".c" and path.name not in other_systems]
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
