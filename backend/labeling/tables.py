"""Tables of labeling."""
