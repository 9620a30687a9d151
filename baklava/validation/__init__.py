"""Check how far a profile can be relied on."""
