"""Text to training batches: sources, `prepare`, the token store, and packed rows."""
