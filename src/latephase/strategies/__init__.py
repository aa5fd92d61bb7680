"""Late-phase strategies, one file each: ways to go on from a half-trained network."""
