"""Work over shards: blocks of the input, one output file each, in a loop here or as tasks of a Ray cluster."""
