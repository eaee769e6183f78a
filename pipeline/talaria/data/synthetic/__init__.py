"""The bundled data set `sample`: seeded conversations whose answers can be checked, with known oddities among them."""
