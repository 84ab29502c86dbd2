"""Floor 0: user errors, strict configuration, tree paths, seeds trained together."""
