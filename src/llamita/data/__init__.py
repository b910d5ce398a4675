"""From text to training rows: sources, the embedded tales, prepare, the token store and its batches."""
