"""The one training loop and what it stands on: settings, optimizers, checkpoints, the run folder."""
