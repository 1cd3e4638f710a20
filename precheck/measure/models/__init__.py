"""The model of each configuration, its weights in memory or read when they are needed."""
