"""The command line: parse, one call of the store, one rendering."""
