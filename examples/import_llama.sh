#!/bin/sh
# A Llama from anywhere to a small GGUF file.
#   sh examples/import_llama.sh MODEL [FOLDER] [TYPE]
# MODEL is a folder of Meta's, a Hugging Face folder or id, a .gguf, or a llama2.c .bin or .pt.
set -eu
model=${1:?usage: import_llama.sh MODEL [FOLDER] [TYPE]}
out=${2:-runs/imported}
type=${3:-q4_k_m}

# 1. What is it?
[ -e "$model" ] && llamita inspect "$model"

# 2. To a checkpoint: streamed, in little memory; up to 200M weights, the logits are compared. Nothing
#    in it is executed.
[ -d "$out/checkpoint" ] || llamita import "$model" --out "$out/checkpoint"

# 3. To one small file, and what it contains.
llamita export "$out/checkpoint" "$out/model.gguf" --type "$type"
llamita inspect "$out/model.gguf"

# 4. Text from it.
llamita run "$out/model.gguf" -n 100
