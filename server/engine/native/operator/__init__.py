"""The native operator itself: C++ in one translation unit, `stack.cpp`, and the library that it becomes.

There are more than twelve files because the C++ has one header for each thing that it is about. `library` finds and
loads what `setup.py` built, and checks that both sides agree on every structure's size.
"""
