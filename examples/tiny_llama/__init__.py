"""A tiny Llama that has read Python's standard library: trained, quantized, and certified as a cascade of two."""
