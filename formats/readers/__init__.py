"""Readers: the formats that users have on disk, read without running anything that they hold.

`sniff` tells which format a file has and calls its reader: safetensors, PyTorch files, NumPy files, GGUF. Each reader
takes a function that reads bytes at an offset, and returns a table of tensors. `model_config` reads config.json.

Imports only formats/. Start reading at `sniff`.
"""
