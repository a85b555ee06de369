"""Log to Weights & Biases, and read its runs back."""
