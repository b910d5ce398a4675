"""Text of documents that are no text files: one module for each kind of file."""
