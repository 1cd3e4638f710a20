"""Images, sounds and videos that a fix is chosen with and proved by, besides text."""
