"""Tables of datasets."""
