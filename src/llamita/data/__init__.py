"""From text to training rows: sources, prepare, the token store and its batches."""
