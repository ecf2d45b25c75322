"""Everything that touches vLLM: its environment, its process, its health."""
