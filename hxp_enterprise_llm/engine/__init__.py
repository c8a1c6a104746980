"""From settings to vLLM: flags, environment, sizes, and the files of a model."""
