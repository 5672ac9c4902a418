"""Decoding strategies. They know no host, no wire and no framework beyond arrays."""
