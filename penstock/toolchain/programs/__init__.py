"""What runs in a toolchain's own interpreter, where Penstock is not installed: standard library only, each file alone.

``penstock.toolchain.call`` puts this directory on the path of every program that it starts, so that the program can say
``from protocol import serve``, wherever it lies.
"""
