"""The data flow of a model, traced without weights."""
