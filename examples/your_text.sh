#!/bin/sh
# Your own text to a model file.
#   sh examples/your_text.sh my_texts [FOLDER] [MINUTES]
# my_texts is a file or a folder: text, tables, PDF, Word, web pages. Run it again to continue.
set -eu
text=${1:?usage: your_text.sh TEXT [FOLDER] [MINUTES]}
out=${2:-runs/mine}
minutes=${3:-10}

# 1. One document per file, paragraph or separator? For one long text add: --split-on blank-lines
[ -d "$out/tokens" ] || llamita prepare "$text" --out "$out/tokens"

# 2. Everything but the minutes is chosen by measuring this machine. $out/run/report.html shows curves.
resume=$([ -f "$out/run/run.json" ] && echo --resume || true)
llamita train "$out/tokens" --out "$out/run" --minutes "$minutes" $resume

# 3. One file, 8 bits per weight.
llamita export "$out/run" "$out/model.gguf" --type q8_0
llamita eval "$out/model.gguf" "$out/tokens"

# 4. Run it here, or in llama.cpp, Ollama or LM Studio.
llamita run "$out/model.gguf"
