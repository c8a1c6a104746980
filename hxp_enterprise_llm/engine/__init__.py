"""Settings to vLLM: its flags, its environment, sizes, and the model's files."""
