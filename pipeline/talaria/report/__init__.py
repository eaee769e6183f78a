"""The stage report: a page about the data, with what is odd in it."""
