"""The figures of one run next to those of its baseline: layers, routing, logits and answers."""
