"""The machine and its files; nothing here knows of KV caches."""
