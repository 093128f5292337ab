"""The bundle: a folder with a hashed manifest, graphs, engines and the golden cases that prove it."""
