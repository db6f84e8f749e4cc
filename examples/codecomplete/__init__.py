"""Names in lines of Python: two language models small enough to be part of this repository, certified and served."""
