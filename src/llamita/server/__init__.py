"""An HTTP server with the APIs of OpenAI and Ollama: many requests share the passes of the engine."""
