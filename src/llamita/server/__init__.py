"""An HTTP server with OpenAI's API: many requests share the passes of the engine."""
