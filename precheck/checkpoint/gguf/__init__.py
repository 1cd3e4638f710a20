"""GGUF files: llama.cpp's format, decoded block by block."""
