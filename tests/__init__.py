"""The tests: what more than one file uses is in `tests.helpers`, fixtures that all may ask for are in `conftest.py`."""
