"""Rank the regions whose labels are contradicted by networks that were not trained on them."""
