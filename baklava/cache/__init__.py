"""The budgeted KV cache and its attention; importable without tasks, Hydra or MLflow."""
