"""What is trained: a network, its loss, and examples to draw batches from."""
