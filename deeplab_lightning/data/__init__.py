"""Data sets, their statistics, folds, transforms and loaders."""
