"""Images: where they come from, and which of them serve what.

`data` reads pictures once into memory-mapped arrays and splits them. `sources` are where pictures
come from, `splits` sets images apart class by class, `protocols` say which images train, which are
searched and with which, `leaks` finds those that stand on both sides.
"""
