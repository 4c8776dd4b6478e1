"""Keys: from what a person holds to the key of each record, and how keys are destroyed.

`unlock` opens the master key with a key file, a passphrase or a command. `keyring` keeps the tenants and one random
key for each record. They lie in the pages of `keytree`, under the root in `root_file`. `rotate` changes the master key
and the ways to it.

Imports only formats/ and the ground (disk, config, errors). Start reading at `keyring`.

Nouns. master key: opens the root. root: the top of the key tree, with the key of its first page. slot: the place of
one record key in the tree. stanza: the master key, sealed under one secret. way in: a stanza and
its secret.
"""
