"""The native operator itself: C++ in one translation unit, `stack.cpp`, and the library built from it.

There are more than twelve files because the C++ has one header per topic. `library` finds and loads what `setup.py`
built, and checks that both sides agree on every structure's size.
"""
