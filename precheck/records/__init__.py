"""The nouns that every room shares: frozen dataclasses without torch."""
