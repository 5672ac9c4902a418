"""The generated messages and services of midstream.v1."""
