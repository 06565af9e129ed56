"""stillroom: distil a big language model into a small one that its owner can run at home."""

__version__ = "0.1.0"
