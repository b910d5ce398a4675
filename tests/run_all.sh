#!/bin/sh
# Everything that `make test` checks, in the order of what fails fastest; BIN is the virtual environment's bin folder.
set -eu
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
PATH="$PWD/$BIN:$PATH"

echo "== ruff, mypy, clang-format"
ruff check .
ruff format --check .
mypy
find engine/src engine/app engine/include engine/tests -name '*.[ch]' -exec clang-format --dry-run -Werror {} +
[ "${1:-}" = check ] && exit 0

echo "== engine: warnings as errors, tests under AddressSanitizer and UndefinedBehaviorSanitizer"
cmake -S engine -B build/asan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLLAMITA_TESTS=ON -DLLAMITA_WERROR=ON \
      -DLLAMITA_SANITIZE=address,undefined >/dev/null
cmake --build build/asan
ctest --test-dir build/asan --output-on-failure --parallel 2

echo "== engine: tests under ThreadSanitizer"
cmake -S engine -B build/tsan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLLAMITA_TESTS=ON -DLLAMITA_WERROR=ON \
      -DLLAMITA_SANITIZE=thread >/dev/null
cmake --build build/tsan --target test_thread_pool test_session test_identity
ctest --test-dir build/tsan --output-on-failure -R '^test_(thread_pool|session)$'
build/tsan/test_identity 8

echo "== pytest"
python -m pytest tests
