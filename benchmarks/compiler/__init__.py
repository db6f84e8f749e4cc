"""What the compiler makes, beside what others make of the same models on the same data (``make bench-compiler``)."""
