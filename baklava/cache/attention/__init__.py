"""The attention `baklava`: dense while a context is read, ragged over its compressed entries afterwards.

- `dense.baklava_attention`: the function in transformers' registry, and `dense_attention` over full tensors.
- `ragged.ragged_attention`: attention to a compressed context and the suffix; `backend.choose_backend` picks what
  computes it: `triton_decode` with `triton_kernels`, `varlen`, or plain PyTorch with the helpers of `precision`.
- `triton_packed`, or `packed_products` in plain PyTorch: attention to quantised entries.
"""
