"""One rank of a training. The files here tell the story; the folders are components and never import the story."""
