"""evenkeel: trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels."""

__version__ = "0.1.0"
