"""Train, pool and compare K-fold experiments."""
