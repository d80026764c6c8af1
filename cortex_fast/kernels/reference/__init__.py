"""Plain PyTorch, short and obviously right: the definition that every other backend is held to."""
