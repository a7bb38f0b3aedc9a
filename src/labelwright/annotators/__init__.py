"""Who guesses labels and descriptions (two-tower models, models that chat), and what is made of the answers."""
