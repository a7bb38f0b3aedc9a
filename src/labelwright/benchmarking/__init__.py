"""Tables of numbers beside the published ones: which cells, how to run them, how to print them."""
