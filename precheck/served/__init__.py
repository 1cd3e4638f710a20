"""A running engine compared with the checkpoint that it serves, from outside.

An engine is asked for tokens and how likely they are; the same tokens then go through every
configuration of the checkpoint in lockstep, and each position is compared.
"""
