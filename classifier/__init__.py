"""What the scripts share: these modules, and the subpackages data, training and answers."""
