"""From people's files to rows, tokens and .bin files, and from these to a Split."""
