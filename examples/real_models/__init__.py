"""Models that packages on PyPI carry and nobody here made, and rows of the kind that they are for."""
