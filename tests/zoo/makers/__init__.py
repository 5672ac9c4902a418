"""Makers of text with known answers, deterministic by seed."""
