"""The machine: its files, memory and GPUs. Nothing in here knows about KV caches."""
