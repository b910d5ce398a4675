"""llamita: grow your own small Llama from your own text, and run it anywhere."""
