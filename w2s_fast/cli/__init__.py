"""The command line: ``main`` dispatches, ``parse`` reads options, a command a file."""
