"""What a model's config and modules say of its decoder: layers, heads, rotation, output projection; or why not."""
