"""Writes the engine as two C files, llamita.c and llamita.h: python engine/scripts/amalgamate.py FOLDER.

Headers come first, then every source file, in one scope. So:

  - What is not in llamita.h becomes static, and cannot collide with a program's own names.
  - A static name that several files define gets its file's name behind it. Members (after `.` or `->`) stay.
  - A file's macros end with the file.
  - A file that CMakeLists.txt compiles for an instruction set gets that set from pragmas.
  - Whatever would mean something else in one scope than in its own file is an error.

It relies on clang-format: a declaration at file scope starts in the first column, and nothing else does.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[1]

# (processor, instruction sets, macro without which the file is empty) of the files compiled with flags of their own.
TARGETS = {
    "kernels_avx2.c": ("__x86_64__", "avx2,fma,f16c", ""),
    "kernels_avxvnni.c": ("__x86_64__", "avx2,fma,f16c,avxvnni", "LLAMITA_HAS_AVXVNNI"),
    "kernels_avx512.c": ("__x86_64__", "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", ""),
    "kernels_amx.c": (
        "__x86_64__",
        "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8",
        "LLAMITA_HAS_AMX",
    ),
    "quantize_avx2.c": ("__x86_64__", "avx2,f16c", ""),
    "kernels_dotprod.c": ("__aarch64__", "dotprod", "LLAMITA_HAS_DOTPROD"),
    "kernels_i8mm.c": ("__aarch64__", "dotprod,i8mm", "LLAMITA_HAS_I8MM"),
}

# Names that headers of a system take, from files that do not include those.
TAKEN = {"TOKEN_CONTROL": "windows.h", "TOKEN_USER": "windows.h", "canonicalize": "math.h"}

PROLOGUE = """\
/* llamita.c: the whole engine in one file. Made from engine/src by engine/scripts/amalgamate.py.
 *
 *     cc -O3 app.c llamita.c -lm -lpthread      (Windows: without the libraries)
 *
 * It needs gcc, clang or zig; llamita.h is its documentation. The instruction set is selected when
 * it runs. Options for the processor (-march) are not needed. */
#if defined(__FAST_MATH__)
#error "llamita.c: expected a build without -ffast-math, which would change the logits"
#endif
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#if defined(_WIN32)
#if !defined(_WIN32_WINNT)
#define _WIN32_WINNT 0x0601
#endif
#define WIN32_LEAN_AND_MEAN
#endif

/* Every sum has one order and one rounding a step: no fusing of products and sums. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunknown-warning-option"
#pragma clang diagnostic ignored "-Wunused-function"
#pragma clang diagnostic ignored "-Wunused-const-variable"
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-const-variable"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* a guess, wrong where functions are inlined */
#pragma GCC diagnostic ignored "-Waggressive-loop-optimizations"
#endif

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define LLAMITA_HAS_AVXVNNI
#if defined(__linux__)
#define LLAMITA_HAS_AMX
#endif
#endif
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define LLAMITA_HAS_DOTPROD
#define LLAMITA_HAS_I8MM
#endif
"""

EPILOGUE = """
#if defined(__clang__)
#pragma clang diagnostic pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
"""

BEGIN_TARGET = """\
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("{sets}"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("{gcc_sets}")
#endif
"""

END_TARGET = """\
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
"""

TOKEN = re.compile(
    r"""(?P<skip> /\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | ^\#\s*include[^\n]*)
      | (?P<member> (?:->|(?<!\.)\.)\s*[A-Za-z_]\w*)
      | (?P<name> \b[A-Za-z_]\w*)""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*\n', re.MULTILINE)
SYSTEM_INCLUDE = re.compile(r"^#include <[^>]+>$", re.MULTILINE)
MACRO = re.compile(r"^#define (\w+)((?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
GUARD = re.compile(r"^#ifndef (LLAMITA_\w+_H|LLAMITA_H)\n#define \1\n(.*)^#endif\n", re.MULTILINE | re.DOTALL)
KEYWORDS = re.compile(
    r"(?:__attribute__|_Static_assert|typedef|struct|union|enum|static|extern|INLINE|LLAMITA_API|else|return)\b"
)


class AmalgamationError(Exception):
    """The files cannot share one scope, for the reason that the message gives."""


def names_in(text: str) -> Iterator[str]:
    return (match["name"] for match in TOKEN.finditer(text) if match["name"])


def rename(text: str, new: Callable[[str], str]) -> str:
    """The text with other names; comments, strings, members and #include lines stay."""
    return TOKEN.sub(lambda match: new(match["name"]) if match["name"] else match[0], text)


def without_comments(text: str) -> str:
    return TOKEN.sub(lambda match: " " if match[0].startswith(("/*", "//")) else match[0], text)


def declarations(text: str) -> Iterator[tuple[str, str]]:
    """The (first words, name) of every declaration at file scope, typedefs and enum constants included."""
    code = without_comments(re.sub(r"^#(?:[^\n]*\\\n)*[^\n]*\n", "", text, flags=re.MULTILINE))
    for match in re.finditer(r"^[A-Za-z_][^\n]*(?:\n(?![A-Za-z_}])[^\n]*)*(?:\n\}[^\n]*)?", code, re.MULTILINE):
        words = match[0].rstrip()
        words = re.sub(r"^(static (?:const )?)struct \{.*?^\} ", r"\1", words, flags=re.DOTALL | re.MULTILINE)
        head = re.split(r"[({=;\[]", words, maxsplit=1)[0]
        if re.match(r"(?:typedef )?(?:struct|union|enum)\b", words) and "{" in words.split(";", 1)[0].split("(", 1)[0]:
            tag = re.search(r"\b(?:struct|union|enum)\s+(\w+)\s*$", head)
            if tag:
                yield "struct", tag[1]
            if re.match(r"(?:typedef )?enum\b", words):
                body = words[words.index("{") + 1 : words.rindex("}")]
                yield from (("enum", name) for name in re.findall(r"(?:^|,)\s*([A-Za-z_]\w*)", body))
            if words.startswith("typedef"):
                tail = words[words.rindex("}") + 1 :]
                yield from (("typedef", name) for name in re.findall(r"\w+", tail.split(";")[0]))
        elif forward := re.fullmatch(r"typedef struct (\w+) \1;", words):
            yield "forward", forward[1]
        elif (names := re.findall(r"[A-Za-z_]\w*", head)) and not re.fullmatch(r"(?:struct|union|enum) \w+\s*", head):
            yield "static" if "static" in names else names[0], names[-1]


def is_private(first_word: str) -> bool:
    return first_word in ("static", "INLINE", "typedef", "struct", "enum")


def staticize(text: str) -> str:
    """Give functions and objects at file scope internal linkage, but for those of llamita.h."""
    lines = []
    for line in text.split("\n"):
        if line.startswith("extern "):
            line = line.replace("extern", "static", 1)
        elif re.match(r"[A-Za-z_]", line) and not KEYWORDS.match(line) and not re.match(r"\w+:|[A-Z]+ static\b", line):
            name = re.findall(r"[A-Za-z_]\w*", re.split(r"[({=;\[]", line, maxsplit=1)[0])[-1]
            line = line if name.startswith("llamita_") else f"static {line}"
        lines.append(line)
    return "\n".join(lines)


class Amalgamation:
    """Reads engine/src (or a folder like it) and writes the two files."""

    def __init__(self, engine: Path = ENGINE) -> None:
        self.source = engine / "src"
        self.public = (engine / "include" / "llamita.h").read_text("utf-8")
        self.headers: dict[str, str] = {}  # in the order in which they can follow each other
        self.included: dict[str, set[str]] = {}  # the headers that a file sees
        self.units: dict[str, str] = {}
        paths = sorted(self.source.glob("*/*.c"), key=lambda path: (path.parent.name == "platform", path))
        for path in paths:  # platform last: headers of a system define short names
            name = path.relative_to(self.source).as_posix()
            self.included[name] = set()
            self.units[name] = self._expand(name, self.included[name])
        self._check_targets((engine / "CMakeLists.txt").read_text("utf-8"))

    def _expand(self, name: str, seen: set[str]) -> str:
        """The file, with files without an include guard pasted in, and the other headers collected."""

        def paste(match: re.Match[str]) -> str:
            included = match[1]
            if included == "llamita.h":
                return ""
            text = (self.source / included).read_text("utf-8")
            if not GUARD.search(text):
                return self._expand(included, seen)
            if included not in self.included:
                self.included[included] = set()
                body = self._expand(included, self.included[included])
                self.headers[included] = GUARD.sub(lambda guard: guard[2], body)
            seen.update({included}, self.included[included])
            return ""

        text = rename((self.source / name).read_text("utf-8"), lambda name: f"own_{name}" if name in TAKEN else name)
        return INCLUDE.sub(paste, text)

    def _check_targets(self, cmake: str) -> None:
        """Every file with instruction sets of its own in CMakeLists.txt must be in TARGETS, and only those."""
        calls = re.findall(r"set_source_files_properties\((\S+\.c) PROPERTIES COMPILE_OPTIONS ([^)]*)\)", cmake)
        found = {Path(path).name for path, options in calls if "-O" not in options}
        present = {name for name in TARGETS if any(unit.endswith(f"/{name}") for unit in self.units)}
        if found != present:
            raise AmalgamationError(
                f"amalgamate.py: TARGETS: expected the files that CMakeLists.txt gives an instruction set "
                f"({', '.join(sorted(found))}), found {', '.join(sorted(present))}"
            )

    def _private_names(self) -> dict[str, set[str]]:
        """For each unit, the names at its file scope that only it means."""
        shared = {name for text in (self.public, *self.headers.values()) for _, name in declarations(text)}
        private = {}
        for unit, text in self.units.items():
            macros = {match[1] for match in MACRO.finditer(text)}
            found = {(first, name) for first, name in declarations(text) if is_private(first)}
            opaque = {name for first, name in found if first == "struct" and name in shared}  # a header's typedef
            private[unit] = {name for _, name in found} - macros - opaque
        return private

    def _check_macros(self) -> None:
        """A macro of a header must mean nothing to a file that did not include it."""
        for header, text in {"llamita.h": self.public, **self.headers}.items():
            macros = {match[1]: match[2] for match in MACRO.finditer(text)}
            macros = {name: body for name, body in macros.items() if f"#undef {name}" not in text}
            for other, code in {**self.headers, **self.units}.items():
                if header == other:
                    continue
                own = {match[1]: match[2] for match in MACRO.finditer(code)}
                for name, body in macros.items():
                    if name in own and without_comments(own[name]).split() != without_comments(body).split():
                        raise AmalgamationError(f"{other}: {name}: expected no macro of this name, which {header} has")
                used = macros.keys() & set(names_in(code)) - own.keys()
                if used and header != "llamita.h" and header not in self.included[other]:
                    raise AmalgamationError(
                        f"{other}: {min(used)}: expected a name that is no macro of {header}; include it, or rename"
                    )

    def _renamed(self) -> dict[str, str]:
        """The units, with a suffix on the private names that occur at more than one file scope."""
        private = self._private_names()
        declared: Counter[str] = Counter()
        everywhere: set[str] = set()
        for text in (self.public, *self.headers.values(), *self.units.values()):
            declared.update({name for _, name in declarations(text)})
            everywhere.update(names_in(text))
        result: dict[str, str] = {}
        taken: dict[str, str] = {}
        for unit, text in self.units.items():
            suffix = "_" + Path(unit).stem
            new = {name: name + suffix for name in private[unit] if declared[name] > 1}
            for name in new.values():
                if name in everywhere or taken.setdefault(name, unit) != unit:
                    raise AmalgamationError(
                        f"{unit}: {name}: expected a new name for {name[: -len(suffix)]}, found it in use"
                    )
            # Names that a macro pastes together from two.
            pasted = [name for name in new for start in re.findall(r"\b(\w+)##", text) if name.startswith(start)]
            aliases = "".join(f"#define {name} {new[name]}\n" for name in sorted(set(pasted)))
            result[unit] = aliases + rename(text, lambda name, new=new: new.get(name, name))  # type: ignore[misc]
        self._check_collisions(result)
        return result

    def _check_collisions(self, units: dict[str, str]) -> None:
        """No name may be private to two files; names that are not would not have linked before."""
        owner: dict[str, str] = {}
        for file, text in {"llamita.h": self.public, **self.headers, **units}.items():
            macros = {match[1] for match in MACRO.finditer(text)}
            for first, name in declarations(text):
                key = f"struct {name}" if first == "struct" else name
                if is_private(first) and name not in macros and owner.setdefault(key, file) != file:
                    raise AmalgamationError(f"{file}: {name}: expected a name of its own, found it in {owner[name]}")

    def _section(self, name: str, text: str) -> str:
        banner = f"/* ================ {name} */\n\n"
        text = staticize(text)
        macros = {match[1] for header in self.headers.values() for match in MACRO.finditer(header)}
        if name in self.units:
            own = dict.fromkeys(match[1] for match in MACRO.finditer(text) if not match[1].startswith("_"))
            keep = macros | {"WIN32_LEAN_AND_MEAN"}
            text += "".join(f"#undef {macro}\n" for macro in own if macro not in keep)
        target = TARGETS.get(Path(name).name)
        if target:
            processor, sets, needed = target
            gcc_sets = f"arch=armv8.2-a+{sets.replace(',', '+')}" if processor == "__aarch64__" else sets
            condition = f"defined({processor})" + (f" && defined({needed})" if needed else "")
            # System headers go first: a compiler's own define what they offer by the options they meet.
            system = "\n".join(dict.fromkeys(SYSTEM_INCLUDE.findall(text)))
            begin = BEGIN_TARGET.format(sets=sets, gcc_sets=gcc_sets)
            text = f"#if {condition}\n{system}\n{begin}{text}{END_TARGET}#endif\n"
        return banner + text

    def source_text(self) -> str:
        self._check_macros()
        units = self._renamed()
        sections = [self._section(name, text) for name, text in {**self.headers, **units}.items()]
        return "\n".join([PROLOGUE, '#include "llamita.h"\n', *sections]) + EPILOGUE


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python engine/scripts/amalgamate.py FOLDER")
    folder = Path(arguments[0])
    try:
        result = Amalgamation()
        files = {"llamita.c": result.source_text(), "llamita.h": result.public}
    except AmalgamationError as error:
        sys.exit(f"amalgamate.py: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        temporary = folder / f".{name}.partial"
        temporary.write_text(text, "utf-8", newline="\n")
        os.replace(temporary, folder / name)
    print(f"wrote {folder / 'llamita.c'} and {folder / 'llamita.h'}")


if __name__ == "__main__":
    main(sys.argv[1:])
