"""The main process of a unit: one model from start to stop. Runs as agent0, imports no vLLM."""
