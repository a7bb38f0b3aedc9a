"""How far to believe a label: the chance that it is right, and where that number comes from."""
