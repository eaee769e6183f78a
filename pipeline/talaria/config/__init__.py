"""Every setting, its default and its documentation, and how a file and overrides become one configuration."""
