"""Readers of data sets. Each function takes keyword arguments and returns the data set's splits by name."""
