"""The verbs, phase by phase: what `labelwright.api` and the command line call."""
