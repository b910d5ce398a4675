"""Fine-tuning: supervised (SFT) and by preferences (DPO), of all weights or with LoRA."""
