"""The text that samples are made of: noise, essays, documents, and how it is fitted to a length."""
