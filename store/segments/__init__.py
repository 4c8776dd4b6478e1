"""Segments: records in append-only files, sealed on the way in, opened and checked on the way out.

`writer` appends, `reader` maps, `records` seals and opens one record, `fetch` and `blobs` read many on all cores.
`scan` and `recover` find the whole records of a killed writer. `key_supply` gives each new record its own key.

Imports only formats/, keys/, catalog/ and the ground. Start reading at `records`.

Nouns. segment: one file, written by one process. record: header, frames, footer of one blob or version. frame: what is
encrypted and can be read alone. reservation: bytes of a segment that one thread writes. place: where a record lies.
"""
