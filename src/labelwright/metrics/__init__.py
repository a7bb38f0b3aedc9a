"""Numbers that say how good a classifier is and how far to trust it."""
