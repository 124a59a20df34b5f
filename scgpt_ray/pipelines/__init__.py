"""The verbs as Ray composition: each flow reads top to bottom like the picture in the README."""
