"""What machine code does, counted without a card: SASS, its loops, and a model of its time."""
