"""What any folder may use: errors, files, locks, threads, Arrow, the hub, redaction. It imports nothing else of this package."""
