"""Training of the reference models: documents, tokenizer, recipe and the training loop."""
