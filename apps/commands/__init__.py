"""The command line, a module for each group of commands. They import what they run only when they run it."""
