"""Networks of the examples, as somebody's own package would have them."""
