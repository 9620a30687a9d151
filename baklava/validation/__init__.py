"""How far a profile can be relied on."""
