"""The self-contained page that shows what a run found, did and reached."""
