"""Run folders: what a discovery leaves on disk, and what can be said from that alone."""
