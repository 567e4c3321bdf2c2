"""Read files, prepare them as .bin files, and load these as a Split."""
