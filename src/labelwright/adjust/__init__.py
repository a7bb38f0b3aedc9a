"""Adjustments: what is known of the classes, turned into tensors with one value per class."""
