"""Text that samples are made of: noise, essays, documents, and fitting them to a length."""
