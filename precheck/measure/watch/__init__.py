"""Every operation that ran: where, and how large its result became."""
