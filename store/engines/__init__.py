"""Engines: thin adapters between the store and what runs models. They call Store and nothing below it."""
