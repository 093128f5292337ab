"""On-device augmentation: a labelled set in, a bigger and still truthful one out."""
