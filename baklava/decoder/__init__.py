"""What a model's config and modules say about its decoder, and why some decoders cannot have budgets.

- `config.decoder_of`: layers, heads and windows from a config; `families`: model types that are refused, and why.
- `length_dependent_rope.fixed_rotation`: one rotation for an entire text, where it depends on the text's length.
- `rotary.rotary_of`: undoes and averages a model's rotary embedding.
- `trace_attention.trace_attention_paths`: finds how each layer's attention reaches the residual stream, an
  `attention_path.AttentionPath`; `linear` recovers the weights of its output projection.
"""
