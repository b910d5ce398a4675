"""The embedded corpus: English stories for young readers, generated from a grammar."""
