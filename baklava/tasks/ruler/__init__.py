"""RULER's tasks (arXiv 2404.06654) and the needle grid."""
