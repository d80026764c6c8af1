"""Plain PyTorch, short and obviously right: the definition that the tests hold every other backend to."""
