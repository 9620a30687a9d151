"""Measures the importance of every KV cache."""
