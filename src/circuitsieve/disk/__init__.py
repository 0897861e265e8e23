"""Files on disk: written as a whole or not at all, checked when read."""
