"""Conversations made of documents: by the model behind an endpoint, or by rules."""
