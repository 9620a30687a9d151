"""What an allocator is held to, and whether it was met."""
