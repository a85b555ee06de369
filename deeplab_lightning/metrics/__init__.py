"""Compute metrics of a whole set, from integer counts independent of batch size and number of processes."""
