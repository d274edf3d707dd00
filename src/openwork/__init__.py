"""openwork: train networks that can be read, find the circuit behind a behaviour, check it, and show it."""

__version__ = "0.1.0"
