"""Labelled ultrasound sets: layouts, one packed file, the data card, batches for training, the phantom."""
