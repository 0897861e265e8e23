"""Models of transformers, unforked: loaded, watched, masked, and made smaller."""
