"""Losses: pure functions of logits and labels that say which rows they leave out."""
