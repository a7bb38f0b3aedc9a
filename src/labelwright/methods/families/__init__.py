"""What methods that learn from the same kind of labels share: what they require, see, report, and how long they run."""
