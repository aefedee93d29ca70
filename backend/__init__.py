"""Visual inspection that has only ever seen good parts."""

__version__ = "0.1.0"
