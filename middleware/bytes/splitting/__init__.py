"""Pre-tokenizers as automata: where a tokenizer cuts a text before it merges anything."""
