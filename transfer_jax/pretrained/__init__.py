"""Floor 1: parameters of other frameworks, read and written with proof."""
