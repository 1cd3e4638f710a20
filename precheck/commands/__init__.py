"""The commands: each parses nothing, asks the pipeline, renders, and says how it ends."""
