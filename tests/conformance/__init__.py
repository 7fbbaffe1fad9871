"""Other projects' test suites, run against this package."""
