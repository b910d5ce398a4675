#!/bin/sh
# Questions and answers to a model that answers in your field.
#   sh examples/questions.sh MODEL questions.jsonl [FOLDER] [MINUTES]
# MODEL is a small chat model (a .gguf, a Hugging Face folder or id), for example
# HuggingFaceTB/SmolLM2-135M-Instruct. questions.jsonl has a pair per line:
#   {"question": "...", "answer": "..."}
# Run it again to continue.
set -eu
model=${1:?usage: questions.sh MODEL QUESTIONS [FOLDER] [MINUTES]}
questions=${2:?usage: questions.sh MODEL QUESTIONS [FOLDER] [MINUTES]}
out=${3:-runs/questions}
minutes=${4:-20}

# 1. The model as a checkpoint.
[ -d "$out/base" ] || llamita import "$model" --out "$out/base"

# 2. Look first: what is learned, what is masked?
llamita finetune "$out/base" "$questions" --out "$out/run" --lora --preview 3

# 3. Train a LoRA adapter. Held-out questions are evaluated before and after.
resume=$([ -f "$out/run/run.json" ] && echo --resume || true)
llamita finetune "$out/base" "$questions" --out "$out/run" --lora --minutes "$minutes" $resume

# 4. Merge the adapter into the model, write one file, and talk to it.
llamita export "$out/run" "$out/model.gguf" --type q8_0
llamita chat "$out/model.gguf"
