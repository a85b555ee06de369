"""K-fold experiments: their jobs, their pooled results and their comparison."""
