"""Studies: many runs of one function, kept in one kind of store and done by one runner."""
