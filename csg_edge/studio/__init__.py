"""The studio: a local page to paint a mask, choose a look and see the image while painting."""
