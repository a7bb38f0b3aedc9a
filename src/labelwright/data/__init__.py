"""Reading, checking, caching and viewing the images."""
