#!/bin/sh
# What `make fuzz` runs: every fuzzer of the engine and of the Python readers for an equal share of the time, on one
# processor. Argument: seconds. clang finds more than gcc, because its libFuzzer is guided by coverage and keeps what it
# found in build/fuzz/corpus. A file that fails is left in build/fuzz; keep it in engine/tests/corpus with the fix.
set -eu
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
PATH="$PWD/$BIN:$PATH"
SECONDS_EACH=$(($1 / 8 > 1 ? $1 / 8 : 1))
FUZZERS="gguf llama2c lora tokenizer bpe_trainer chat_template tensor_types"

BUILD=build/asan
COMPILER=${CC:-cc}
COVERAGE=OFF
PROBE='int LLVMFuzzerTestOneInput(const char *bytes, unsigned long n) { return (bytes && n) * 0; }'
if echo "$PROBE" | clang -x c -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null; then
    BUILD=build/fuzz
    COMPILER=clang
    COVERAGE=ON
fi
CC=$COMPILER cmake -S engine -B $BUILD -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLLAMITA_TESTS=ON \
    -DLLAMITA_FUZZ=$COVERAGE -DLLAMITA_SANITIZE=address,undefined >/dev/null
# shellcheck disable=SC2046,SC2086
cmake --build $BUILD --target $(printf 'fuzz_%s ' $FUZZERS) >/dev/null

SEED=$(date +%s)
for name in $FUZZERS; do
    if [ $COVERAGE = ON ]; then
        mkdir -p "$BUILD/corpus/$name"
        set -- -max_len=262144 -timeout=20 -artifact_prefix="$BUILD/$name-" -print_final_stats=1 \
            "$BUILD/corpus/$name"
    else
        set --
    fi
    [ -d "engine/tests/corpus/fuzz_$name" ] && set -- "$@" "engine/tests/corpus/fuzz_$name"
    if ! nice "$BUILD/fuzz_$name" -max_total_time="$SECONDS_EACH" -seed="$SEED" "$@" >"$BUILD/$name.log" 2>&1
    then
        grep -E 'ERROR|runtime error|SUMMARY|^/?[^ ]*\.[ch]:[0-9]+: |reproduce|Test unit' "$BUILD/$name.log" >&2
        echo "fuzz_$name failed: $BUILD/$name.log" >&2
        exit 1
    fi
    echo "fuzz_$name: $(sed -nE 's/^stat::number_of_executed_units: ([0-9]+)/\1/p; s/.*: ([0-9]+) cases$/\1/p' \
        "$BUILD/$name.log") cases"
done
nice python -m pytest tests/unit/test_damaged_files.py -s --fuzz-seconds "$SECONDS_EACH" --fuzz-seed "$SEED"
