"""Bridges to other libraries, each in its own module, imported when it is used."""
