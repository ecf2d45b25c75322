"""vLLM as a proper Linux service."""

__version__ = "0.1.0"
