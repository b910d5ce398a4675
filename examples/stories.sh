#!/bin/sh
# TinyStories to a story model, in about fifteen minutes on two CPU cores. Needs the network once.
#   sh examples/stories.sh [FOLDER] [MINUTES]
set -eu
out=${1:-runs/stories}
minutes=${2:-10}

# 1. Text to a tokenizer and a token store. Downloads the data on first use.
[ -d "$out/tokens" ] || llamita prepare tinystories --out "$out/tokens"

# 2. See what the minutes will be spent on, then spend them. Ctrl-C saves; run this script again to
#    continue.
llamita plan "$out/tokens" --minutes "$minutes"
resume=$([ -f "$out/run/run.json" ] && echo --resume || true)
llamita train "$out/tokens" --out "$out/run" --minutes "$minutes" $resume

# 3. How good is it? Bits per byte of held-out stories, and how varied its own stories are.
llamita eval "$out/run" "$out/tokens" --samples 16

# 4. One file with 8 bits per weight, and what the smaller type costs.
llamita export "$out/run" "$out/stories.gguf" --type q8_0
llamita eval "$out/stories.gguf" "$out/tokens"

# 5. A story, from the C engine.
llamita run "$out/stories.gguf" -i "Once upon a time" -t 0.8
