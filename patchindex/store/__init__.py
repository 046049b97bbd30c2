"""Bytes on disk: checksums, raw arrays, copies of remote stores. Nothing here knows what a patch is."""
