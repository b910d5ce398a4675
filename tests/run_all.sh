#!/bin/sh
# What `make test` runs, in the order of what fails fastest. Arguments: check (only the linters) or all (the slow tests
# too). BIN is the bin folder of the virtual environment.
set -eu
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
PATH="$PWD/$BIN:$PATH"
WHAT=${1:-fast}

configure() { # build folder, sanitizers
    cmake -S engine -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLLAMITA_TESTS=ON -DLLAMITA_WERROR=ON \
        -DLLAMITA_SANITIZE="$2" >/dev/null
}

echo "== ruff, mypy, clang-format"
ruff check .
ruff format --check .
mypy
find engine/src engine/app engine/include engine/tests engine/wasm examples -name '*.[ch]' -exec clang-format --dry-run -Werror {} +
[ "$WHAT" = check ] && exit 0

echo "== engine: warnings as errors, tests under AddressSanitizer and UndefinedBehaviorSanitizer"
configure build/asan address,undefined
cmake --build build/asan
ctest --test-dir build/asan --output-on-failure --parallel 2

if [ "$WHAT" = all ]; then
    echo "== engine: tests under ThreadSanitizer"
    configure build/tsan thread
    cmake --build build/tsan --target test_thread_pool test_session test_identity
    ctest --test-dir build/tsan --output-on-failure -R '^test_(thread_pool|session)$'
    build/tsan/test_identity 8
    build/asan/test_identity 200
fi

echo "== pytest, in two processes"
python -m pytest tests --numprocesses 2
if [ "$WHAT" = all ]; then
    echo "== pytest, slow tests"
    python -m pytest tests -m slow
    echo "== fuzzers, for a minute"
    sh tests/fuzz.sh 60
fi
