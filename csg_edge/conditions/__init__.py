"""What an image is made of: masks and how they are varied, contexts and how they are chosen, the files of both."""
