"""Metrics of a whole set, from integer counts that do not depend on batch size or number of processes."""
