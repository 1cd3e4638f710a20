"""The worst prompt: searches for it, runs it, and saves it."""
