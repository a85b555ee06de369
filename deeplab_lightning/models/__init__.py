"""DeepLab: backbone -> head -> resize. Knows nothing of Lightning or the data."""
