"""KV: the key and value arrays of a sequence of tokens, put, found by longest prefix, and read back.

`kv` is the face. `arrays` cuts what a user hands over into blocks, and `put` stores them. `match` counts the blocks
that are stored, `find` makes a prefix of them, `prefix` reads it back in any part and layout, `export` writes it to a
file.

Imports only formats/, artifacts/ and what artifacts/ may import. Start reading at `kv`.

Nouns. block: the KV of a fixed number of tokens. chain: the digests of the blocks of a sequence, each with all before
it. part: the layers of a block that become one blob. prefix part: what one call reads of a prefix. key bounds: minimum
and maximum of keys, for sparse attention.
"""
