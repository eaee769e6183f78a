"""Which stages there are, what each reads and its key; the only place that names functions of higher folders, as strings."""
