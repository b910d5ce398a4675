"""A checkpoint and examples to a checkpoint or an adapter that answers as the examples do."""
