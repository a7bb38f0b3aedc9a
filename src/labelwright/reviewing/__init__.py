"""A local page on which a person looks at the labels of a run and corrects them."""
