"""From a bundle to images: which engine is taken and why, the generator, folders of images."""
