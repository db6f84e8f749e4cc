"""Complete lines of Python: two language models small enough to be part of this repository, and how they were made."""
