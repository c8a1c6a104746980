"""What runs inside vLLM's own processes. Runs as agent0, imports vLLM."""
