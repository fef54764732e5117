"""Updates a second of every path, where their time goes, and what share of the machine's matrix speed that is."""
