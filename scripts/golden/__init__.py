"""Golden vectors, written from formats/FORMAT.md alone: nothing here knows the product."""
