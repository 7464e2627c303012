"""Parts of the GPU report beside those of one engine."""
