"""The budgeted KV cache and its attention. Imports nothing of tasks, experiments, Hydra or MLflow.

- `budgeted.BudgetedCache`: the cache for `model.generate`; `budgeted_layer` is one layer of it.
- `prefill.ContextCache`: a full cache that eviction policies observe, to compress it in many ways later.
- `row_settings`, `compress`: where budgets become entries; `ragged_storage` with `ragged_layout`: where these lie;
  `packed_entries` of `quantised` vectors: those in fewer bits; `suffix`: the tokens after the context.
- `layers`, `attended`, `padding`, `generate_call`: what the two caches share with each other and with transformers.
- `attention`: the attention `baklava`, dense over the context and ragged afterwards.
"""
