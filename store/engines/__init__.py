"""Engines: adapters between the store and what runs models.

`transformers` takes the KV of a sequence out of a cache of that library and puts it back in another process.

Imports only formats/, the errors and `store.py`: an adapter calls Store and nothing below it. Start reading at
`transformers`.
"""
