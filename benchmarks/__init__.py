"""Side-by-side measurements that anyone can rerun with one command (``make bench``). Prints, never asserts on time."""
