"""Bytes on disk: checksums, raw arrays, atomic writes, remote copies. Nothing here knows what a patch is."""
