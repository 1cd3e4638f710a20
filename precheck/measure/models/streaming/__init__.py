"""Parameters read from the checkpoint while runs need them, in bounded memory."""
