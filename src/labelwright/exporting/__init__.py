"""What leaves the house: models and labels in the formats of other tools."""
