"""Keys of store format 4 whose names differ from the names in Python."""

__all__ = ["BUILD_ID", "HEADER_CHECKSUM", "IMAGES_CHECKSUM"]

BUILD_ID = "of"  # attribute of a scale: the build that wrote the scale
IMAGES_CHECKSUM = "images"  # attribute of a scale: checksum of the store's images
HEADER_CHECKSUM = "head_checksum"  # attribute of a scale: checksum of the FAISS file in front of its lists
